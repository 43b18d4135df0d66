"""Ghosts: fingerprints of recently evicted blocks, from which ARC and S3-FIFO learn.

A fingerprint is the CRC-32 of the key. Keys begin with a cryptographic hash, so fingerprints are
evenly distributed, and two blocks that share one (one in 400 with ten million ghosts) cause a
worse choice, never wrong bytes. Fingerprints are equal in all processes, so that a seeded
simulation is reproducible.

Cost: O(1); about 140 bytes per ghost.
"""

from collections import OrderedDict
from zlib import crc32 as fingerprint

__all__ = ["Ghosts", "fingerprint"]


class Ghosts:
    """A FIFO of fingerprints with fast membership tests. Not thread-safe."""

    __slots__ = ("_fingerprints",)

    def __init__(self) -> None:
        self._fingerprints: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._fingerprints)

    def add(self, ghost: int) -> None:
        """Add `ghost` as the newest one, or move it there if it is present."""
        self._fingerprints[ghost] = None
        self._fingerprints.move_to_end(ghost)

    def take(self, ghost: int) -> bool:
        """Remove `ghost`; return True if it was present."""
        return self._fingerprints.pop(ghost, self) is None

    def trim(self, bound: int) -> None:
        """Remove the oldest ghosts until at most `bound` remain."""
        while len(self._fingerprints) > bound:
            self._fingerprints.popitem(last=False)
