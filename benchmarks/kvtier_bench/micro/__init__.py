"""Micro-benchmarks of the hot paths, one module for each, compared with the machine's limits."""

from kvtier_bench.micro.suite import run

__all__ = ["run"]
