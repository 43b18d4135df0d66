"""Kill -9 at random moments: writers, evictors and a reader on one shared folder."""

from kvtier_bench.kill.suite import run

__all__ = ["run"]
