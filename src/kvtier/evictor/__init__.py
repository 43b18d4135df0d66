"""Keeping a shared store within its bounds: many evictors, no master, no host's clock trusted."""
