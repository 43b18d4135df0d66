"""Bringing a tree of many small files under its bound: what it costs, and what it leaves."""

from kvtier_bench.evict.suite import FILES, run

__all__ = ["FILES", "run"]
