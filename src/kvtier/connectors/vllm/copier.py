"""The contract between the worker, which creates device jobs, and a copier, which runs them.

`HostCopier` (cpu.py) and `CudaCopier` (cuda.py) differ only in how they copy bytes. Jobs, seals,
arenas and the engine's interface are implemented once, in worker.py.
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
    """The kind of a device job. The value is its priority; higher values go first."""

    STORE = 0
    LOAD = 1
    EXPEDITED_LOAD = 2
    """A load that the engine waits for inside its step."""


class DeviceJob(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One copy between blocks of the device and slots of `host`."""

    job_id: int
    kind: JobKind
    copies: list[GroupCopy]
    host: Host
    moved_bytes: int

    @cached_property
    def touched(self) -> tuple[frozenset[int], frozenset[int]]:
        """The device blocks and the slots that the job reads or writes, of all groups."""
        blocks = frozenset(block for copy in self.copies for block in copy.blocks.tolist())
        slots = frozenset(slot for copy in self.copies for slot in copy.slots.tolist())
        return blocks, slots

    def conflicts(self, other: "DeviceJob") -> bool:
        """Return True if the jobs share a device block or a slot and must keep their order."""
        mine, theirs = self.touched, other.touched
        return not (mine[0].isdisjoint(theirs[0]) and mine[1].isdisjoint(theirs[1]))


class FinishedJob(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a device job."""

    job_id: int
    copied: bool
    """False if not all bytes were copied."""
    seconds: float


class Copier(Protocol):
    """The part of a worker that runs device jobs. Every method is for the engine's thread."""

    def submit(self, job: DeviceJob) -> None:
        """Queue a job without waiting for the copy. Jobs that conflict keep their order."""
        ...

    def poll(self) -> list[FinishedJob]:
        """Return the jobs that ended since the last call, each exactly once."""
        ...

    def wait(self, job_ids: Collection[int]) -> None:
        """Block until these jobs have ended; `poll` still reports them.

        Jobs that are unknown or already reported count as ended.
        """
        ...

    def attach(self, host: Host) -> None:
        """Prepare an arena, for example by pinning it. Called once, before a job uses it."""
        ...

    def close(self) -> None:
        """Wait for running copies, and discard queued and later jobs. Idempotent."""
        ...
