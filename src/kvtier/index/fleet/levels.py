"""Tiers as numbers: a level each, from the fastest to the slowest, in one byte a replica.

A byte says what a replica holds of one block. Stored bytes are *cumulative*: the bit of a level
is set where that level or a faster one has the block, so that "held in RAM or faster" is one
bit, and the prefix that it makes can be bisected. The last bit is for what was routed a moment
ago and has not been announced.

Invariant: a name keeps its level as long as the index lives; there are never more than LEVELS.
"""

from typing import Final

from kvtier.index.fleet.base import DEVICE

LEVELS: Final = 7
ABSENT: Final = LEVELS
"""The level of a block that no tier holds: beyond the slowest."""
ROUTED: Final = 1 << LEVELS
"""The bit of what was routed there and is expected."""
HELD: Final = ROUTED - 1
"""The bits of all levels."""
KNOWN: Final = (DEVICE, "ram", "disk", "shared", "objectstore")
"""Tiers of this project's settings. Two more may come from elsewhere and rank behind them."""

CUMULATIVE: Final = tuple(
    (HELD & ~((raw & -raw) - 1)) if raw & HELD else 0 for raw in range(ROUTED)
)
"""By the set of levels that have a block: the set of levels at or behind one that has it."""
LOWEST: Final = tuple(((raw & -raw).bit_length() - 1) if raw else ABSENT for raw in range(ROUTED))
"""By the set of levels that have a block: the fastest of them."""


class Levels:
    """Which name has which level, and which of them occur."""

    def __init__(self) -> None:
        self._names = list(KNOWN)
        self._used: tuple[int, ...] = (0,)

    @property
    def used(self) -> tuple[int, ...]:
        """Levels that occur, the fastest first; the device always."""
        return self._used

    def name(self, level: int) -> str:
        """Of a level in `used`."""
        return self._names[level]

    def use(self, name: str) -> int | None:
        """Its level, which counts as occurring from now on; None where no level is left."""
        if name not in self._names:
            if len(self._names) == LEVELS:
                return None
            self._names.append(name)
        level = self._names.index(name)
        if level not in self._used:
            self._used = tuple(sorted((*self._used, level)))
        return level
