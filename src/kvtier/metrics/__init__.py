"""The declarations of all metrics, in one module per kind of process."""
