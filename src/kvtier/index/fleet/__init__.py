"""Where a prefix is in the fleet: which replica holds how much of it in which tier."""
