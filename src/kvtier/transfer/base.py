"""The contract between the cache and whatever moves blocks for it.

Why it exists: the cache must not know whether threads move its blocks on real time
(`transfer.engine`) or a simulation does on virtual time (`testing.transfers`).
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kvtier.blocks.key import BlockKey
from kvtier.tiers.base import BlockMove, Outcome
from kvtier.transfer.breaker import BreakerState


class Direction(enum.Enum):
    """What a transfer does to the tier. In this order they go first."""

    FIND = "find"
    """Ask which blocks it holds: only of a tier that others write to."""
    READ = "read"
    DELETE = "delete"
    WRITE = "write"


@dataclass(slots=True, eq=False)
class Transfer:
    """A batch for one tier.

    `rows` are the caller's own labels, one per block, given back on completion. `moves` is
    empty where no bytes move, `parents` for all but a write.
    """

    tier: int
    direction: Direction
    rows: list[int]
    keys: list[BlockKey]
    moves: list[BlockMove] = field(default_factory=list)
    parents: Sequence[BlockKey | None] = ()
    cancelled: bool = False


@dataclass(slots=True, frozen=True)
class Completion:
    """Blocks `start` up to `start + len(outcomes)` of a transfer are decided.

    `outcomes` is None where the part was cancelled before it began: nothing was touched.
    """

    transfer: Transfer
    start: int
    stop: int
    outcomes: list[Outcome] | None
    seconds: float


class Transfers(Protocol):
    """Moves batches. One caller, the cache's thread; only `drain` and `close` block.

    Every block of an accepted transfer appears in exactly one completion. The memory of a move
    stays in use until then. Transfers may overtake each other, also for the same key.
    """

    @property
    def queue_blocks(self) -> int:
        """Blocks that may wait for or be in writes to one tier."""
        ...

    def submit(self, transfer: Transfer) -> bool:
        """Accept a transfer. False, and nothing happens, where it may not wait or at the end."""
        ...

    def poll(self) -> list[Completion]:
        """What has completed since the last call."""
        ...

    def cancel(self, transfer: Transfer) -> None:
        """Parts that have not begun complete with `outcomes=None`; the others run on."""
        ...

    def queued_blocks(self, tier: int, direction: Direction) -> int:
        """Blocks waiting or moving to or from lower tier `tier`."""
        ...

    def breaker(self, tier: int, direction: Direction) -> BreakerState:
        """Whether calls to lower tier `tier` pass now."""
        ...

    def drain(self, deadline_s: float) -> bool:
        """Block until nothing is queued or moving, at most `deadline_s` seconds; True if so."""
        ...

    def close(self, deadline_s: float) -> bool:
        """Cancel what has not begun and end; False if something did not return in time."""
        ...
