"""Indexes: which tier holds a block, in this process and in the fleet."""
