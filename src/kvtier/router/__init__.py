"""Choosing the replica for a request: one that has its prefix in a fast tier, and has room."""
