"""Host RAM: fixed slots in one mapping."""
