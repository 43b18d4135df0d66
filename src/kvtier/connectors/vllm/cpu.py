"""Copies for engines whose device is the CPU: numpy on one side thread.

The thread is this platform's copy stream: it runs one job at a time, so jobs keep their order;
loads overtake stores they do not conflict with, because a request waits for them. Where the
pieces of a group lie at a constant stride in one allocation, a block moves with a single strided
copy; elsewhere with one copy a run of pieces. numpy lets go of the GIL while it copies.

Invariant: a job leaves the queue once, and is reported once, whatever the copy does.
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
"""`poll` waits this long for a running load: an engine that has nothing else to do would only
spin, and one that has computed in this step finds the load over already. Measured with a 165 MB
load, time to first token beyond a device hit: 11 ms without, 8 ms with it (9 ms with 50 ms),
6 ms copying inside `submit`, which would stall every running request for the length of the copy.
"""


class StridedRun(NamedTuple):
    """Alike pieces at a constant stride, that one copy a block moves."""

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
        """Queue behind what must come first. Microseconds."""
        with self._condition:
            if not self._closing:
                place(self._queue, job)
                self._condition.notify_all()

    def poll(self) -> list[FinishedJob]:
        """Jobs that ended; lingers up to LINGER_S when a load is about to."""
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
        """Nothing to register: any host memory will do."""

    def close(self) -> None:
        """End the thread after the job that runs; drop the queue."""
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
        # One view of all places in the arena, because making one costs more than indexing it.
        # It is made over the buffer, not with as_strided, because that checks the bounds.
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


def place(queue: deque[DeviceJob], job: DeviceJob) -> None:
    """Insert `job` before waiting jobs of lower priority, up to one it conflicts with."""
    at = len(queue)
    while at and queue[at - 1].kind < job.kind and not job.conflicts(queue[at - 1]):
        at -= 1
    queue.insert(at, job)


def _runs(
    pieces: Sequence[Piece], layout: SlotLayout, caches: "CanonicalKVCaches"
) -> Iterator[StridedRun]:
    """Cut the pieces into as few strided views as possible."""
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
    """Bytes from the first piece to the second, on the device and in the sub-block."""
    if len(pieces) == 1:
        return 0, 0
    return pieces[1].address - pieces[0].address, pieces[1].offset - pieces[0].offset


def _run(pieces: Sequence[Piece], layout: SlotLayout, caches: "CanonicalKVCaches") -> StridedRun:
    first = pieces[0]
    storage = _storage(caches, first)
    flat = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
    device_step, host_step = _step(pieces)
    # A stride may be negative, so the view begins at the first piece, not at the lowest.
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
    """Cores beside the engine's, or none: then stay where the caller is."""
    if os.environ.get("VLLM_CPU_OMP_THREADS_BIND") == "nobind":
        return frozenset()
    try:
        allowed = frozenset(os.sched_getaffinity(os.getppid()))
    except OSError:
        return frozenset()
    return allowed - frozenset(os.sched_getaffinity(0))


def free_cores_setter() -> Callable[[], None]:
    """A function that moves the thread that calls it to the free cores, found now."""
    cores = free_cores()

    def move() -> None:
        if cores:
            try:
                os.sched_setaffinity(0, cores)
            except OSError as error:
                _log.info("kvtier: a thread stays on the engine's cores: %s", error)

    return move
