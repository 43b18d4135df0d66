"""The contract between the worker, which knows jobs, and a copier, which copies bytes.

`HostCopier` (cpu.py) and `CudaCopier` (cuda.py) differ only in how bytes copy; jobs, seals,
arenas and the engine's interface live once, in worker.py.
"""

import enum
from collections.abc import Collection
from functools import cached_property
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from kvtier.connectors.vllm.slots import GroupCopy

Host = npt.NDArray[np.uint8]
"""An arena's memory: uint8 [slots, slot_bytes]."""


class JobKind(enum.IntEnum):
    """What a job does; the value is its priority, higher first."""

    STORE = 0
    LOAD = 1
    EXPEDITED_LOAD = 2
    """The engine waits for this load inside its step."""


class DeviceJob(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One transfer between the device's blocks and the slots of `host`."""

    job_id: int
    kind: JobKind
    copies: list[GroupCopy]
    host: Host
    moved_bytes: int

    @cached_property
    def touched(self) -> tuple[frozenset[int], frozenset[int]]:
        """Device blocks and slots this job reads or writes, whatever their group."""
        blocks = frozenset(block for copy in self.copies for block in copy.blocks.tolist())
        slots = frozenset(slot for copy in self.copies for slot in copy.slots.tolist())
        return blocks, slots

    def conflicts(self, other: "DeviceJob") -> bool:
        """Whether the two must keep their order: they share a device block or a slot."""
        mine, theirs = self.touched, other.touched
        return not (mine[0].isdisjoint(theirs[0]) and mine[1].isdisjoint(theirs[1]))


class FinishedJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job that is over. `copied` is False if the bytes did not all arrive."""

    job_id: int
    copied: bool
    seconds: float


class Copier(Protocol):
    """Moves bytes. Every method belongs to the engine's worker thread."""

    def submit(self, job: DeviceJob) -> None:
        """Take the job; never blocks on the copy. Jobs that conflict keep their order."""
        ...

    def poll(self) -> list[FinishedJob]:
        """Jobs that ended since the last call, each exactly once."""
        ...

    def wait(self, job_ids: Collection[int]) -> None:
        """Block until these jobs are over; unknown and polled ones are. `poll` still reports."""
        ...

    def attach(self, host: Host) -> None:
        """Called once for each arena before a job uses it: register or pin what helps."""
        ...

    def close(self) -> None:
        """Stop after the copy that runs; later jobs are dropped. Idempotent. Blocks."""
        ...
