"""Pickers, one a file: `max-score-picker` in a configuration is the `PLUGIN` of `max_score.py`."""
