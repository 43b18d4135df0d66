"""The fault matrix: every kind of fault meets every operation of a tier, on folders and objects."""

from kvtier_bench.faults.suite import FaultRow, run

__all__ = ["FaultRow", "run"]
