"""What the cache counts: plain integers that a driver turns into metrics.

Cumulative since construction; the thread that decides writes them, anyone may read.
"""

from dataclasses import dataclass, field


@dataclass(slots=True)
class TierCounters:
    """One tier. RAM reads and writes are those of the engine, lower tiers' those of `transfer`."""

    hit_blocks: int = 0
    """Blocks given to the engine that this tier supplied."""
    read_blocks: int = 0
    written_blocks: int = 0
    evicted_blocks: int = 0
    corrupt_blocks: int = 0
    """Failed verification; dropped and served as misses."""
    missing_blocks: int = 0
    """The tier did not have what it was believed to hold."""
    fault_blocks: int = 0
    """The device refused; served as misses, or not kept."""
    rejected_blocks: int = 0
    """Turned away by the admission policy."""
    dropped_blocks: int = 0
    """Not kept because of back-pressure: a full queue, or no slot that could be freed."""


@dataclass(slots=True)
class CacheCounters:
    """The whole cache: `tiers[0]` is RAM."""

    tiers: list[TierCounters]
    miss_blocks: int = 0
    """Blocks the engine had to compute: no tier held them when they were saved."""
    expired_promotions: int = 0
    """Requests that stopped waiting for a lower tier at their deadline."""
    durations: list[tuple[int, str, float]] = field(default_factory=list)
    """(tier, direction, seconds) of finished transfer parts; `take_durations` empties it."""

    def take_durations(self) -> list[tuple[int, str, float]]:
        """The durations since the last call."""
        taken, self.durations = self.durations, []
        return taken
