"""Block events: which blocks entered or left which tier."""

import enum

import msgspec

from kvtier.blocks.key import BlockKey


class Change(enum.Enum):
    """The kinds of block events."""

    STORED = "stored"
    REMOVED = "removed"


class BlockEvent(msgspec.Struct, frozen=True):
    """Blocks that entered (`STORED`) or left (`REMOVED`) the tier named `tier`."""

    change: Change
    tier: str
    keys: tuple[BlockKey, ...]
