"""Seals, which record whether every worker has filled its part of a slot.

The engine has no failure path between device and RAM: it takes every store for successful. The
actual result therefore goes through memory that scheduler and workers share, with one byte per
slot and worker. The scheduler breaks the seals of a slot before a store, and each worker seals
the slots that it has written. A slot that is not whole when the engine reports the store as
complete is discarded. A worker that failed, skipped the job or died leaves no seal.

Invariant: a slot is whole only after every worker has finished the latest store into it.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kvtier.blocks.layout import ALIGNMENT
from kvtier.errors import InvalidSettings
from kvtier.memory.arena import Arena

Slots = Sequence[int] | npt.NDArray[np.integer]

_BROKEN = 0
_SEALED = 1


class Seals:
    """The seals of all slots in shared memory, one byte per (slot, worker). No method blocks.

    The scheduler calls `break_seals` and `whole`, the worker of a rank calls `seal`.
    """

    def __init__(self, memory: Arena, slots: int, world_size: int) -> None:
        self._memory = memory
        self._shape = (slots, world_size)
        marks = memory.array.reshape(-1)[: slots * world_size]
        self._marks: npt.NDArray[np.uint8] = marks.reshape(slots, world_size)

    @classmethod
    def create(cls, slots: int, world_size: int) -> "Seals":
        """Create broken seals for `slots` slots, each filled by `world_size` workers."""
        size_bytes = -(-slots * world_size // ALIGNMENT) * ALIGNMENT
        return cls(Arena.create(1, size_bytes), slots, world_size)

    @classmethod
    def attach(cls, handle: str) -> "Seals":
        """Map the seals of another process. Raises InvalidSettings if they no longer exist."""
        shape, _, memory = handle.partition("@")
        slots, _, world_size = shape.partition("x")
        if not (slots.isdecimal() and world_size.isdecimal() and memory):
            raise InvalidSettings(f"{handle!r} does not name seals")
        return cls(Arena.attach(memory), int(slots), int(world_size))

    @property
    def handle(self) -> str:
        """A name for `attach` in other processes, valid while this process lives."""
        return f"{self._shape[0]}x{self._shape[1]}@{self._memory.handle}"

    def break_seals(self, slots: Slots) -> None:
        """Mark slots as not whole before a store. Takes about 2 us per batch."""
        self._marks[slots] = _BROKEN

    def seal(self, rank: int, slots: Slots) -> None:
        """Record that the worker of `rank` has written its part of the slots."""
        self._marks[slots, rank] = _SEALED

    def whole(self, slots: Slots) -> npt.NDArray[np.bool_]:
        """Return bool [slots]: True where every worker has sealed. About 5 us per batch."""
        sealed: npt.NDArray[np.bool_] = (self._marks[slots] == _SEALED).all(axis=1)
        return sealed

    def close(self) -> None:
        """Unmap the memory. Idempotent."""
        self._marks = np.zeros(self._shape, dtype=np.uint8)
        self._memory.close()
