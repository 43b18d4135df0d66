"""The copier for engines on CPUs: numpy copies on a thread of its own.

The thread acts as the copy stream of this platform. It runs one job at a time, and a load
overtakes stores that it does not conflict with, because a request waits for it. If the pieces of
a group have a constant stride in one allocation, a single strided copy moves a block; otherwise
there is one copy per run of pieces. numpy releases the GIL while it copies.

The engine binds its computing threads to cores, its main thread among them, and new threads
inherit the binding. kvtier's threads therefore move to the cores that the parent process may
use and the engine does not; otherwise copies would take turns with the computation.

Invariant: a job leaves the queue once and is reported once, even if the copy fails.
"""

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from kvtier import clock
from kvtier.connectors.vllm.copier import DeviceJob, FinishedJob, Host, JobKind
from kvtier.connectors.vllm.slots import GroupCopy, Piece, SlotLayout, Turn

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import CanonicalKVCaches

_log = logging.getLogger(__name__)

LINGER_S = 0.005
"""Time for which `poll` waits for a running load. An engine without other work would only spin,
and after a step that computed something the load has usually ended already. Measured with a load
of 165 MB as time to first token beyond a device hit: 11 ms without waiting, 8 ms with this value,
9 ms with 50 ms, and 6 ms with a copy inside `submit`, which would delay all running requests.
"""


class StridedRun(NamedTuple):
    """A run of equal pieces at a constant stride, copied with one call per block."""

    device: Host
    """uint8 [device blocks, pieces, fragments, fragment bytes]."""
    offset: int
    """Bytes from the start of the sub-block."""
    steps: tuple[int, int]
    """Bytes in the sub-block from one piece to the next, and from one fragment to the next."""
    turn: Turn


class HostCopier:
    """A `Copier` between two places in host memory, on the thread `kvtier-copy`."""

    def __init__(self, layout: SlotLayout, caches: "CanonicalKVCaches") -> None:
        self._layout = layout
        self._groups = [list(_runs(pieces, layout, caches)) for pieces in layout.groups]
        self._condition = threading.Condition()
        self._queue: deque[DeviceJob] = deque()
        self._running: DeviceJob | None = None
        self._finished: list[FinishedJob] = []
        self._closing = False
        self._thread = threading.Thread(
            target=self._serve,
            args=(free_cores_setter(),),
            name="kvtier-copy",
            daemon=True,
        )
        self._thread.start()

    def submit(self, job: DeviceJob) -> None:
        """Queue a job by priority, behind the jobs it conflicts with. Takes microseconds."""
        with self._condition:
            if not self._closing:
                insert_by_priority(self._queue, job)
                self._condition.notify_all()

    def poll(self) -> list[FinishedJob]:
        """Return the jobs that ended; wait up to LINGER_S if a load is queued or running."""
        with self._condition:
            if not self._finished and self._loading():
                self._condition.wait_for(lambda: bool(self._finished), LINGER_S)
            finished, self._finished = self._finished, []
        return finished

    def wait(self, job_ids: Collection[int]) -> None:
        """Block until none of the jobs is queued or running."""
        wanted = frozenset(job_ids)
        with self._condition:
            self._condition.wait_for(
                lambda: not any(job.job_id in wanted for job in self._pending())
            )

    def attach(self, host: Host) -> None:
        """Do nothing: any host memory is suitable."""

    def close(self) -> None:
        """Discard the queue and end the thread after the running job."""
        with self._condition:
            self._closing = True
            self._queue.clear()
            self._condition.notify_all()
        self._thread.join()
        self._groups.clear()

    def _pending(self) -> Iterator[DeviceJob]:
        if self._running is not None:
            yield self._running
        yield from self._queue

    def _loading(self) -> bool:
        return any(job.kind is not JobKind.STORE for job in self._pending())

    def _serve(self, leave_engine_cores: Callable[[], None]) -> None:
        leave_engine_cores()
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._closing or bool(self._queue))
                if self._closing:
                    return
                job = self._running = self._queue.popleft()
            started_s = clock.perf_s()
            copied = self._copy(job)
            seconds = clock.perf_s() - started_s
            with self._condition:
                self._running = None
                self._finished.append(
                    FinishedJob(job_id=job.job_id, copied=copied, seconds=seconds)
                )
                self._condition.notify_all()

    def _copy(self, job: DeviceJob) -> bool:
        try:
            for copy in job.copies:
                for run in self._groups[copy.group]:
                    self._copy_run(job, copy, run)
        except Exception:
            _log.exception("kvtier: a copy failed, this is a bug; job %s", job.job_id)
            return False
        return True

    def _copy_run(self, job: DeviceJob, copy: GroupCopy, run: StridedRun) -> None:
        layout, is_store = self._layout, job.kind is JobKind.STORE
        sub_block_bytes = layout.sub_block_bytes[copy.group]
        # One view covers all places in the arena, because creating a view costs more than
        # indexing it. A view created over the buffer has its bounds checked; as_strided does not.
        host: Host = np.ndarray(
            (len(job.host), layout.blocks_per_chunk, *run.device.shape[1:]),
            dtype=np.uint8,
            buffer=job.host.data,
            offset=layout.slice_offset + run.offset,
            strides=(job.host.shape[1], sub_block_bytes, *run.steps, 1),
        )
        part = layout.written(copy, run.turn) if is_store else copy
        places = zip(
            part.blocks.tolist(), part.slots.tolist(), part.sub_blocks.tolist(), strict=True
        )
        for block, slot, sub_block in places:
            if is_store:
                np.copyto(host[slot, sub_block], run.device[block])
            else:
                np.copyto(run.device[block], host[slot, sub_block])


def insert_by_priority(queue: deque[DeviceJob], job: DeviceJob) -> None:
    """Insert `job` before queued jobs of lower priority, but behind any it conflicts with."""
    at = len(queue)
    while at and queue[at - 1].kind < job.kind and not job.conflicts(queue[at - 1]):
        at -= 1
    queue.insert(at, job)


def _runs(
    pieces: Sequence[Piece], layout: SlotLayout, caches: "CanonicalKVCaches"
) -> Iterator[StridedRun]:
    """Divide the pieces into as few strided views as possible."""
    start = 0
    for end in range(1, len(pieces) + 1):
        if end == len(pieces) or not _continues(pieces[start : end + 1], caches):
            yield _run(pieces[start:end], layout, caches)
            start = end


def _continues(pieces: Sequence[Piece], caches: "CanonicalKVCaches") -> bool:
    first, last = pieces[0], pieces[-1]
    moved = last._replace(tensor=first.tensor, address=first.address, offset=first.offset)
    return (
        moved == first
        and _step(pieces[-2:]) == _step(pieces)
        and _storage(caches, last).data_ptr() == _storage(caches, first).data_ptr()
    )


def _step(pieces: Sequence[Piece]) -> tuple[int, int]:
    """Return the bytes from the first piece to the second, on the device and in the sub-block."""
    if len(pieces) == 1:
        return 0, 0
    return pieces[1].address - pieces[0].address, pieces[1].offset - pieces[0].offset


def _run(pieces: Sequence[Piece], layout: SlotLayout, caches: "CanonicalKVCaches") -> StridedRun:
    first = pieces[0]
    storage = _storage(caches, first)
    flat = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
    device_step, host_step = _step(pieces)
    # A stride may be negative, so the view begins at the first piece, not at the lowest address.
    device: Host = np.ndarray(
        (layout.device_blocks, len(pieces), first.fragments, first.fragment_bytes),
        dtype=np.uint8,
        buffer=flat.data,
        offset=first.address - storage.data_ptr(),
        strides=(first.block_stride, device_step, first.device_step, 1),
    )
    return StridedRun(device, first.offset, (host_step, first.host_step), first.turn)


def _storage(caches: "CanonicalKVCaches", piece: Piece) -> torch.UntypedStorage:
    return caches.tensors[piece.tensor].tensor.untyped_storage()


def free_cores() -> frozenset[int]:
    """Return the cores that the engine does not compute on; an empty set if there are none."""
    if os.environ.get("VLLM_CPU_OMP_THREADS_BIND") == "nobind":
        return frozenset()
    try:
        allowed = frozenset(os.sched_getaffinity(os.getppid()))
    except OSError:
        return frozenset()
    return allowed - frozenset(os.sched_getaffinity(0))


def free_cores_setter() -> Callable[[], None]:
    """Return a function that binds the calling thread to the cores that are free now."""
    cores = free_cores()

    def move() -> None:
        if cores:
            try:
                os.sched_setaffinity(0, cores)
            except OSError as error:
                _log.info("kvtier: a thread cannot leave the engine's cores: %s", error)

    return move
