"""Processes that share a folder, killed with SIGKILL at random moments while a reader verifies."""

from kvtier_bench.kill.suite import run

__all__ = ["run"]
