"""Bytes of a block: how large, how aligned, how many tokens they stand for."""

import msgspec

ALIGNMENT = 4096
"""Slots start and end on this boundary, so that O_DIRECT can read and write them in place."""


class BlockLayout(msgspec.Struct, frozen=True, kw_only=True):
    """Size of one block. `block_bytes` are payload, `slot_bytes` what a slot occupies."""

    block_bytes: int
    tokens_per_block: int

    @property
    def slot_bytes(self) -> int:
        """`block_bytes` rounded up to ALIGNMENT."""
        return -(-self.block_bytes // ALIGNMENT) * ALIGNMENT
