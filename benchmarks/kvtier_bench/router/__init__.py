"""Measuring the router's parts."""
