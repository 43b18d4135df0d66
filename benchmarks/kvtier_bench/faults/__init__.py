"""The fault matrix: every fault times every verb, on folders and objects, counted in rows."""

from kvtier_bench.faults.suite import FaultRow, run

__all__ = ["FaultRow", "run"]
