"""Copies for engines whose device is the CPU: numpy on one side thread.

The thread is this platform's copy stream: it runs one job at a time, so jobs keep their order;
loads overtake stores they do not conflict with, because a request waits for them. Where the
pages of a group lie at a constant stride in one allocation, a block moves with a single strided
copy; elsewhere with one copy a run of pages. numpy lets go of the GIL while it copies.

Invariant: a job leaves the queue once, and is reported once, whatever the copy does.
"""

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from kvtier import clock
from kvtier.connectors.vllm import affinity
from kvtier.connectors.vllm.copier import Finished, Host, Job, Verb
from kvtier.connectors.vllm.slots import Page, SlotLayout

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import CanonicalKVCaches

_log = logging.getLogger(__name__)

LINGER_S = 0.005
"""`poll` waits this long for a running load: an engine that has nothing else to do would only
spin, and one that has computed in this step finds the load over already. Measured with a 165 MB
load, time to first token beyond a device hit: 11 ms without, 8 ms with it (9 ms with 50 ms),
6 ms copying inside `submit`, which would stall every running request for the length of the copy.
"""


class Run(NamedTuple):
    """Pages of a group at a constant stride: uint8 [device blocks, pages, page bytes]."""

    device: npt.NDArray[np.uint8]
    offset: int
    """Bytes from the start of the sub-block."""


class HostCopier:
    """A `Copier` between two places in host memory, on the thread `kvtier-copy`."""

    def __init__(self, layout: SlotLayout, caches: "CanonicalKVCaches") -> None:
        self._groups = [list(_runs(pages, layout, caches)) for pages in layout.groups]
        self._condition = threading.Condition()
        self._queue: deque[Job] = deque()
        self._running: Job | None = None
        self._finished: list[Finished] = []
        self._closing = False
        self._thread = threading.Thread(
            target=self._serve,
            args=(affinity.free_cores_setter(),),
            name="kvtier-copy",
            daemon=True,
        )
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue behind what must come first. Microseconds."""
        with self._condition:
            if not self._closing:
                place(self._queue, job)
                self._condition.notify_all()

    def poll(self) -> list[Finished]:
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

    def _pending(self) -> Iterator[Job]:
        if self._running is not None:
            yield self._running
        yield from self._queue

    def _loading(self) -> bool:
        return any(job.verb is not Verb.STORE for job in self._pending())

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
                self._finished.append(Finished(job_id=job.job_id, copied=copied, seconds=seconds))
                self._condition.notify_all()

    def _copy(self, job: Job) -> bool:
        try:
            for move in job.moves:
                places = zip(
                    move.blocks.tolist(), move.slots.tolist(), move.offsets.tolist(), strict=True
                )
                runs = self._groups[move.group]
                for (block, slot, offset), run in itertools.product(places, runs):
                    device = run.device[block]
                    start = offset + run.offset
                    host = job.host[slot, start : start + device.size].reshape(device.shape)
                    if job.verb is Verb.STORE:
                        np.copyto(host, device)
                    else:
                        np.copyto(device, host)
        except Exception:
            _log.exception("kvtier: a copy failed, this is a bug; job %s", job.job_id)
            return False
        return True


def place(queue: deque[Job], job: Job) -> None:
    """Insert `job` before waiting jobs of lower priority, up to one it conflicts with."""
    at = len(queue)
    while at and queue[at - 1].verb < job.verb and not job.conflicts(queue[at - 1]):
        at -= 1
    queue.insert(at, job)


def _runs(pages: Sequence[Page], layout: SlotLayout, caches: "CanonicalKVCaches") -> Iterator[Run]:
    """Cut the pages into as few strided views as possible."""
    start = 0
    for end in range(1, len(pages) + 1):
        if end == len(pages) or not _continues(pages[start : end + 1], caches):
            yield _run(pages[start:end], layout, caches)
            start = end


def _continues(pages: Sequence[Page], caches: "CanonicalKVCaches") -> bool:
    first, last = pages[0], pages[-1]
    step = pages[1].address - first.address
    return (
        last.page_bytes == first.page_bytes
        and last.block_stride == first.block_stride
        and last.address - pages[-2].address == step
        and _storage(caches, last).data_ptr() == _storage(caches, first).data_ptr()
    )


def _run(pages: Sequence[Page], layout: SlotLayout, caches: "CanonicalKVCaches") -> Run:
    first = pages[0]
    storage = _storage(caches, first)
    flat = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
    step = pages[1].address - first.address if len(pages) > 1 else 0
    # The stride may be negative, so the view is made from the first page, not the lowest.
    device = np.lib.stride_tricks.as_strided(
        flat[first.address - storage.data_ptr() :],
        (layout.device_blocks, len(pages), first.page_bytes),
        (first.block_stride, step, 1),
    )
    return Run(device, first.offset)


def _storage(caches: "CanonicalKVCaches", page: Page) -> torch.UntypedStorage:
    return caches.tensors[page.tensor].tensor.untyped_storage()
