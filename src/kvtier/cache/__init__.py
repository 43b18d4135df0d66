"""Deciding: what is held where, whom to evict, what to move."""
