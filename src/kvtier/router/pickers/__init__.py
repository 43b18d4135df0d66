"""Pickers, one per file: `max-score-picker` is the `PLUGIN` of `max_score.py`."""
