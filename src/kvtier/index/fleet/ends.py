"""How far along one chain each replica and tier reaches, as a descent through masks found it.

Why a file of its own: the table finds masks and knows no tiers; here one row of masks becomes
numbers of blocks. Plain bytes, because there are few steps and many questions, each of which
costs less than one call of a library of arrays.

Invariant: a step's mask holds no bit that the step before lacks, so the number of steps that
have a bit says where it ends.
"""

import functools
from collections.abc import Sequence

_BYTES = bytes(range(256))


class Ends:
    """By slot: a *column*, one byte a step."""

    __slots__ = ("_masks", "_width", "lengths")

    def __init__(self, lengths: Sequence[int], masks: Sequence[int], slots: int) -> None:
        """By step: its length, in ascending order, and the bits that reach at least so far."""
        self.lengths = [0, *lengths]
        """In blocks, by the number of steps."""
        self._masks = b"".join([mask.to_bytes(slots, "little") for mask in masks])
        self._width = slots

    def columns(self, slots: Sequence[int | None]) -> list[bytes | None]:
        """What each slot has at each step; slots of equal columns reach equally far."""
        masks, width = self._masks, self._width
        return [None if slot is None else masks[slot::width] for slot in slots]

    def reach(self, slot: int, bits: int) -> int:
        """Blocks from the start of the chain that have any of these bits."""
        column = self._masks[slot :: self._width]
        return self.lengths[len(column.translate(None, lacking(bits)))]


@functools.cache
def lacking(bits: int) -> bytes:
    """All bytes that have none of the bits."""
    return bytes(byte for byte in _BYTES if not byte & bits)
