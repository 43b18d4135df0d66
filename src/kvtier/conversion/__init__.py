"""Trees of other systems into kvtier's shared format and back, where the bytes allow it."""
