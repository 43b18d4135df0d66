"""Eviction from shared storage by any number of evictors, without a master."""
