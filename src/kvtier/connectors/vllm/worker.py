"""The worker half: turns the engine's jobs into copies between device blocks and arena slots.

It decides nothing. One per device, in the engine's worker process; the engine's thread calls
it and never waits in `submit_*`.

When a copy fails (a bug, there is no such fault): a store is reported as done, because the
engine stops otherwise, but its slots stay unsealed and the scheduler drops them; a load is
reported as failed, which stops the engine, because its only alternative is to compute on
wrong bytes.
"""

import logging
from collections.abc import Callable, Collection

from vllm.v1.kv_offload.base import (
    GPULoadStoreSpec,
    LoadStoreSpec,
    OffloadingWorker,
    TransferResult,
)

from kvtier.connectors.vllm.copier import Copier, Finished, Job, Verb
from kvtier.connectors.vllm.seals import Seals
from kvtier.connectors.vllm.slots import SlotLayout
from kvtier.connectors.vllm.specs import ArenaLoadStoreSpec
from kvtier.errors import Closed, InvalidSettings
from kvtier.memory.arena import Arena

_log = logging.getLogger(__name__)

_FAULTS = (ValueError, TypeError, InvalidSettings, Closed, OSError)


class CopyWorker(OffloadingWorker):
    """`OffloadingWorker` over a `Copier`. All methods belong to the engine's worker thread."""

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
        self._jobs: dict[int, tuple[Job, ArenaLoadStoreSpec]] = {}
        self._refused: list[TransferResult] = []

    def submit_store(
        self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec
    ) -> bool:
        """Copy device blocks into slots, later. Always True."""
        return self._submit(job_id, Verb.STORE, src_spec, dst_spec)

    def submit_load(
        self,
        job_id: int,
        src_spec: LoadStoreSpec,
        dst_spec: GPULoadStoreSpec,
        expedited: bool = False,
    ) -> bool:
        """Copy slots into device blocks, later; `expedited` ones first. Always True."""
        verb = Verb.LOAD_AT_ONCE if expedited else Verb.LOAD
        return self._submit(job_id, verb, dst_spec, src_spec)

    def get_finished(self) -> list[TransferResult]:
        """Jobs that ended since the last call; the slots of stores are sealed by then."""
        refused, self._refused = self._refused, []
        return refused + [self._settle(finished) for finished in self._copier.poll()]

    def wait(self, job_ids: Collection[int]) -> None:
        """Block until these jobs are over; `get_finished` still reports them."""
        self._copier.wait(job_ids)

    def shutdown(self) -> None:
        """Stop copying and unmap. Idempotent; no thread or mapping is left."""
        self._copier.close()
        self._jobs.clear()
        for arena, seals in self._attached.values():
            arena.close()
            seals.close()
        self._attached.clear()

    def _submit(
        self, job_id: int, verb: Verb, device: GPULoadStoreSpec, host: LoadStoreSpec
    ) -> bool:
        try:
            job, spec = self._job(job_id, verb, device, host)
        except _FAULTS:
            _log.exception("kvtier: job %s is refused, this is a bug: %s %s", job_id, device, host)
            self._refused.append(TransferResult(job_id=job_id, success=verb is Verb.STORE))
            return True
        self._jobs[job_id] = (job, spec)
        self._copier.submit(job)
        return True

    def _job(
        self, job_id: int, verb: Verb, device: GPULoadStoreSpec, host: LoadStoreSpec
    ) -> tuple[Job, ArenaLoadStoreSpec]:
        if not isinstance(host, ArenaLoadStoreSpec):
            raise TypeError(f"{type(host).__name__} is not a kvtier spec")
        moves = self._layout.expand(
            device.block_ids, device.group_sizes, device.block_indices, host.slots
        )
        arena, _ = self._attach(host)
        if host.slots.size and not 0 <= host.slots.min() <= host.slots.max() < arena.slots:
            raise ValueError(f"slots outside 0..{arena.slots - 1}: {host.slots}")
        count = self._layout.stored_bytes if verb is Verb.STORE else self._layout.loaded_bytes
        job = Job(job_id=job_id, verb=verb, moves=moves, host=arena.array, moved_bytes=count(moves))
        return job, host

    def _attach(self, spec: ArenaLoadStoreSpec) -> tuple[Arena, Seals]:
        attached = self._attached.get((spec.arena, spec.seals))
        if attached is None:
            if spec.slice_bytes != self._layout.slice_bytes:
                raise InvalidSettings(
                    f"worker {self._layout.rank} may use {self._layout.slice_bytes} bytes of a "
                    f"slot by its own configuration and {spec.slice_bytes} by the scheduler's: "
                    "unequal shares (an uneven pipeline split) are not supported, nothing will "
                    "be cached"
                )
            attached = self._attach_arena(spec.arena), self._attach_seals(spec.seals)
            self._attached[spec.arena, spec.seals] = attached
            self._copier.attach(attached[0].array)
        return attached

    def _settle(self, finished: Finished) -> TransferResult:
        job, spec = self._jobs.pop(finished.job_id)
        if job.verb is not Verb.STORE:
            return _result(job, finished, success=finished.copied)
        if finished.copied:
            self._attach(spec)[1].seal(self._layout.rank, spec.slots)
        return _result(job, finished, success=True)


def _result(job: Job, finished: Finished, *, success: bool) -> TransferResult:
    return TransferResult(
        job_id=job.job_id,
        success=success,
        transfer_size=job.moved_bytes,
        transfer_time=finished.seconds,
    )
