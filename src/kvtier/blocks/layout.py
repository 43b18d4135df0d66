"""The layout of a block: its size, its alignment and its tokens."""

import msgspec

ALIGNMENT = 4096
"""Slots start and end at multiples of it, so that O_DIRECT can read and write them in place."""


class BlockLayout(msgspec.Struct, frozen=True, kw_only=True):
    """The size of a block: `block_bytes` of payload in a slot of `slot_bytes`."""

    block_bytes: int
    tokens_per_block: int

    @property
    def slot_bytes(self) -> int:
        """`block_bytes` rounded up to ALIGNMENT."""
        return -(-self.block_bytes // ALIGNMENT) * ALIGNMENT
