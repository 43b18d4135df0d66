"""Diagnosis for `kvtier doctor`: why engines do not share, and what is wrong with a setup."""
