"""The fleet's indexes: which replica holds how much of a prompt in which tier."""
