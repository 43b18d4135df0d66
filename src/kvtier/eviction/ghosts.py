"""Ghosts: the fingerprints of blocks that left a short while ago, oldest first.

Why: ARC and S3-FIFO learn from blocks that come back soon after they left. A fingerprint is
the CRC-32 of the key: the key begins with a cryptographic hash, so 32 bits are spread well, and
two blocks that share one (one in 400 at ten million ghosts) cost a wrong guess, never wrong
bytes. The same in every process, so that a seeded simulation repeats.
Costs: O(1); some 140 bytes a ghost.
"""

from collections import OrderedDict
from zlib import crc32 as fingerprint

__all__ = ["Ghosts", "fingerprint"]


class Ghosts:
    """A bounded FIFO with membership. Not thread-safe."""

    __slots__ = ("_fingerprints",)

    def __init__(self) -> None:
        self._fingerprints: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._fingerprints)

    def add(self, ghost: int) -> None:
        """The block just left: the newest ghost, even if it was one already."""
        self._fingerprints[ghost] = None
        self._fingerprints.move_to_end(ghost)

    def take(self, ghost: int) -> bool:
        """Whether it was a ghost; it is none any more."""
        return self._fingerprints.pop(ghost, self) is None

    def trim(self, bound: int) -> None:
        """Drop the oldest ghosts until at most `bound` are left."""
        while len(self._fingerprints) > bound:
            self._fingerprints.popitem(last=False)
