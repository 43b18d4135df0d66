"""Scorers, one per file: `queue-scorer` in a configuration is the `PLUGIN` of `queue.py`."""
