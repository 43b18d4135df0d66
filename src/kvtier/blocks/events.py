"""Announcements: which blocks entered or left which tier."""

import enum

import msgspec

from kvtier.blocks.key import BlockKey


class Change(enum.Enum):
    """What happened to the blocks of an event."""

    STORED = "stored"
    REMOVED = "removed"


class BlockEvent(msgspec.Struct, frozen=True):
    """Blocks that entered (`STORED`) or left (`REMOVED`) the tier named `tier`."""

    change: Change
    tier: str
    keys: tuple[BlockKey, ...]
