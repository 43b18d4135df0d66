"""Marks that say whether every worker has filled its slice of a slot.

Why: the engine has no failure path between device and RAM; a job it is told about always
succeeded. So the truth travels beside it: one byte per slot and worker in memory that
scheduler and workers share. The scheduler breaks the seals of a slot before a store, each
worker seals what it has written, and a slot that is not whole when the engine reports the
store as complete is dropped. A worker that failed, skipped the job or died leaves no seal.

Invariant: a slot is whole only after every worker finished the newest store into it.
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
    """One byte per (slot, worker) in shared memory. No method blocks but `close`.

    `break_seals` and `whole` belong to the scheduler, `seal` to the worker of that rank.
    """

    def __init__(self, memory: Arena, slots: int, world_size: int) -> None:
        self._memory = memory
        self._shape = (slots, world_size)
        marks = memory.array.reshape(-1)[: slots * world_size]
        self._marks: npt.NDArray[np.uint8] = marks.reshape(slots, world_size)

    @classmethod
    def create(cls, slots: int, world_size: int) -> "Seals":
        """Broken seals for `slots` slots that `world_size` workers fill together."""
        size_bytes = -(-slots * world_size // ALIGNMENT) * ALIGNMENT
        return cls(Arena.create(1, size_bytes), slots, world_size)

    @classmethod
    def attach(cls, handle: str) -> "Seals":
        """Map another process's seals. Raises InvalidSettings if they are gone."""
        shape, _, memory = handle.partition("@")
        slots, _, world_size = shape.partition("x")
        if not (slots.isdecimal() and world_size.isdecimal() and memory):
            raise InvalidSettings(f"{handle!r} does not name seals")
        return cls(Arena.attach(memory), int(slots), int(world_size))

    @property
    def handle(self) -> str:
        """Names these seals to other processes while this process lives."""
        return f"{self._shape[0]}x{self._shape[1]}@{self._memory.handle}"

    def break_seals(self, slots: Slots) -> None:
        """Before a store: whatever the slots held is no longer whole. ~2 us a batch."""
        self._marks[slots] = _BROKEN

    def seal(self, rank: int, slots: Slots) -> None:
        """The worker of `rank` has written its slice of the slots."""
        self._marks[slots, rank] = _SEALED

    def whole(self, slots: Slots) -> npt.NDArray[np.bool_]:
        """bool [slots]: True where every worker has sealed. ~5 us a batch."""
        sealed: npt.NDArray[np.bool_] = (self._marks[slots] == _SEALED).all(axis=1)
        return sealed

    def close(self) -> None:
        """Unmap. Idempotent."""
        self._marks = np.zeros(self._shape, dtype=np.uint8)
        self._memory.close()
