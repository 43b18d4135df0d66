"""Eviction from a tree of many small files: its cost, and the hit rate of later reads."""

from kvtier_bench.evict.suite import FILES, run

__all__ = ["FILES", "run"]
