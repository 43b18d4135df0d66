"""The contract between the cache and the transfers of its blocks.

The cache does not know whether threads move its blocks in real time (`transfer.engine`) or a
simulation does in virtual time (`testing.transfers`).
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kvtier.blocks.key import BlockKey
from kvtier.tiers.base import BlockMove, Outcome
from kvtier.transfer.breaker import BreakerState


class Direction(enum.Enum):
    """The kinds of transfers, in the order of their priority."""

    FIND = "find"
    """Ask a shared tier which blocks it holds."""
    READ = "read"
    DELETE = "delete"
    WRITE = "write"


@dataclass(slots=True, eq=False)
class Transfer:
    """A batch of blocks between RAM and one lower tier.

    `rows` are the caller's labels, one per block, which it needs again at completion. `moves` is
    empty if no bytes move (FIND, DELETE), and `parents` is empty except for WRITE.
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
    """The end of one part of a transfer: its blocks `start` up to, but not including, `stop`.

    `outcomes` is None if the part was cancelled before it began: then nothing was touched.
    """

    transfer: Transfer
    start: int
    stop: int
    outcomes: list[Outcome] | None
    seconds: float


class Transfers(Protocol):
    """An executor of transfers. Only the cache's thread calls it; only `drain`, `close` block.

    Every block of an accepted transfer appears in exactly one completion, and the memory of its
    BlockMove stays in use until then. Transfers may overtake each other, even for the same key.
    """

    @property
    def queue_blocks(self) -> int:
        """The largest number of blocks that may be queued or running as writes to one tier."""
        ...

    def submit(self, transfer: Transfer) -> bool:
        """Accept a transfer; return False, and do nothing, if its queue is full or closed."""
        ...

    def poll(self) -> list[Completion]:
        """Return the completions since the last call."""
        ...

    def cancel(self, transfer: Transfer) -> None:
        """Cancel the parts that have not begun: they complete with `outcomes=None`."""
        ...

    def queued_blocks(self, tier: int, direction: Direction) -> int:
        """Return the blocks queued or running to or from lower tier `tier`."""
        ...

    def breaker(self, tier: int, direction: Direction) -> BreakerState:
        """Return the state of the breaker for such calls to lower tier `tier`."""
        ...

    def drain(self, deadline_s: float) -> bool:
        """Wait until nothing is queued or running; return False after `deadline_s` seconds."""
        ...

    def close(self, deadline_s: float) -> bool:
        """Cancel what has not begun and stop; return False if a call did not return in time."""
        ...
