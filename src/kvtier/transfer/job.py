"""What moves between RAM and a lower tier: one transfer, and the parts it completes in."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

from kvtier.blocks.key import BlockKey
from kvtier.tiers.base import Move, Outcome


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
    moves: list[Move] = field(default_factory=list)
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
