"""The worker's half of the connector: copies between device blocks and arena slots.

There is one `CopyWorker` per device, in the engine's worker process. The engine's thread calls
it and never waits in `submit_store` and `submit_load`.

A copy can fail only because of a bug. A failed store is reported as successful, because the
engine would stop otherwise; its slots stay unsealed, and the scheduler discards them. A failed
load is reported as failed and stops the engine, which would compute on wrong bytes otherwise.
"""

import logging
from collections.abc import Callable, Collection

import numpy as np
import numpy.typing as npt
from vllm.v1.kv_offload.base import (
    GPULoadStoreSpec,
    LoadStoreSpec,
    OffloadingWorker,
    TransferResult,
)

from kvtier.connectors.vllm.copier import Copier, DeviceJob, FinishedJob, JobKind
from kvtier.connectors.vllm.seals import Seals
from kvtier.connectors.vllm.slots import SlotLayout
from kvtier.errors import Closed, InvalidSettings
from kvtier.memory.arena import Arena

_log = logging.getLogger(__name__)

_FAULTS = (ValueError, TypeError, InvalidSettings, Closed, OSError)


class ArenaLoadStoreSpec(LoadStoreSpec):
    """The scheduler's message to a worker: the arena slots of one job.

    It is plain data, because the engine sends it between processes. The handles let a worker in
    any process of the host map the same memory.
    """

    def __init__(self, slots: npt.ArrayLike, *, arena: str, seals: str, slice_bytes: int) -> None:
        self.slots: npt.NDArray[np.int32] = np.asarray(slots, dtype=np.int32)
        """int32 [keys], in the order of the groups and of the keys in each group."""
        self.arena = arena
        """`Arena.handle` of the memory that contains the slots."""
        self.seals = seals
        """`Seals.handle` of the seals that the worker sets on filled slots."""
        self.slice_bytes = slice_bytes
        """`Arrangement.slice_bytes` of the scheduler; a worker with another value rejects jobs."""

    def __repr__(self) -> str:
        return f"ArenaLoadStoreSpec(slots={self.slots.tolist()})"


class CopyWorker(OffloadingWorker):
    """An `OffloadingWorker` over a `Copier`. All methods are for the engine's worker thread."""

    def __init__(
        self,
        layout: SlotLayout,
        copier: Copier,
        *,
        attach_arena: Callable[[str], Arena] = Arena.attach,
        attach_seals: Callable[[str], Seals] = Seals.attach,
    ) -> None:
        self._layout = layout
        self._copier = copier
        self._attach_arena = attach_arena
        self._attach_seals = attach_seals
        self._attached: dict[tuple[str, str], tuple[Arena, Seals]] = {}
        self._jobs: dict[int, tuple[DeviceJob, ArenaLoadStoreSpec]] = {}
        self._rejected: list[TransferResult] = []

    def submit_store(
        self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec
    ) -> bool:
        """Queue a copy of device blocks into slots; always return True."""
        return self._submit(job_id, JobKind.STORE, src_spec, dst_spec)

    def submit_load(
        self,
        job_id: int,
        src_spec: LoadStoreSpec,
        dst_spec: GPULoadStoreSpec,
        expedited: bool = False,
    ) -> bool:
        """Queue a copy of slots into device blocks, `expedited` ones first; return True."""
        kind = JobKind.EXPEDITED_LOAD if expedited else JobKind.LOAD
        return self._submit(job_id, kind, dst_spec, src_spec)

    def get_finished(self) -> list[TransferResult]:
        """Return the jobs that ended since the last call; the slots of stores are sealed."""
        rejected, self._rejected = self._rejected, []
        return rejected + [self._finish(finished) for finished in self._copier.poll()]

    def wait(self, job_ids: Collection[int]) -> None:
        """Block until these jobs have ended; `get_finished` still reports them."""
        self._copier.wait(job_ids)

    def shutdown(self) -> None:
        """Stop copying and unmap the memory; no thread or mapping remains. Idempotent."""
        self._copier.close()
        self._jobs.clear()
        for arena, seals in self._attached.values():
            arena.close()
            seals.close()
        self._attached.clear()

    def _submit(
        self, job_id: int, kind: JobKind, device: GPULoadStoreSpec, host: LoadStoreSpec
    ) -> bool:
        try:
            job, spec = self._job(job_id, kind, device, host)
        except _FAULTS:
            _log.exception("kvtier: job %s is rejected, this is a bug: %s %s", job_id, device, host)
            self._rejected.append(TransferResult(job_id=job_id, success=kind is JobKind.STORE))
            return True
        self._jobs[job_id] = (job, spec)
        self._copier.submit(job)
        return True

    def _job(
        self, job_id: int, kind: JobKind, device: GPULoadStoreSpec, host: LoadStoreSpec
    ) -> tuple[DeviceJob, ArenaLoadStoreSpec]:
        if not isinstance(host, ArenaLoadStoreSpec):
            raise TypeError(f"{type(host).__name__} is not an ArenaLoadStoreSpec")
        copies = self._layout.expand(
            device.block_ids, device.group_sizes, device.block_indices, host.slots
        )
        arena, _ = self._attach(host)
        if host.slots.size and not 0 <= host.slots.min() <= host.slots.max() < arena.slots:
            raise ValueError(f"slots outside 0..{arena.slots - 1}: {host.slots}")
        count = self._layout.stored_bytes if kind is JobKind.STORE else self._layout.loaded_bytes
        job = DeviceJob(
            job_id=job_id, kind=kind, copies=copies, host=arena.array, moved_bytes=count(copies)
        )
        return job, host

    def _attach(self, spec: ArenaLoadStoreSpec) -> tuple[Arena, Seals]:
        attached = self._attached.get((spec.arena, spec.seals))
        if attached is None:
            if spec.slice_bytes != self._layout.slice_bytes:
                raise InvalidSettings(
                    f"worker {self._layout.rank} may use {self._layout.slice_bytes} bytes of a "
                    f"slot by its own configuration, but {spec.slice_bytes} by the scheduler's: "
                    "unequal shares (an uneven pipeline split) are not supported, and nothing "
                    "will be cached"
                )
            attached = self._attach_arena(spec.arena), self._attach_seals(spec.seals)
            self._attached[spec.arena, spec.seals] = attached
            self._copier.attach(attached[0].array)
        return attached

    def _finish(self, finished: FinishedJob) -> TransferResult:
        job, spec = self._jobs.pop(finished.job_id)
        if job.kind is not JobKind.STORE:
            return _result(job, finished, success=finished.copied)
        if finished.copied:
            self._attach(spec)[1].seal(self._layout.rank, spec.slots)
        return _result(job, finished, success=True)


def _result(job: DeviceJob, finished: FinishedJob, *, success: bool) -> TransferResult:
    return TransferResult(
        job_id=job.job_id,
        success=success,
        transfer_size=job.moved_bytes,
        transfer_time=finished.seconds,
    )
