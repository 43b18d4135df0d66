"""The RAM tier's memory: fixed-size slots in one shared mapping."""
