"""The copier for engines on accelerators: a pinned arena, side streams and events.

Stores, loads and expedited loads have a stream each, so that none delays another. A job starts
after the work that the engine's own stream had queued when the job was submitted, and after the
jobs of other streams that it conflicts with. The engine's batched copy moves all pages of a job
in one driver call.

This module has not run on a GPU. The addresses, which could be wrong without a crash, are
computed by `slots.copy_pointers`, which is tested.
"""

import logging
import threading
from collections.abc import Collection
from typing import NamedTuple

import torch
from vllm import _custom_ops as ops
from vllm.platforms import current_platform
from vllm.v1.kv_offload.cpu.host_register import host_register, host_unregister

from kvtier.connectors.vllm.copier import DeviceJob, FinishedJob, Host, JobKind
from kvtier.connectors.vllm.slots import CopyPointers, SlotLayout, copy_pointers

_log = logging.getLogger(__name__)

_PIN_STEP_BYTES = 8 * 1024**3
"""Size of the ranges that are pinned at once: drivers reject very large ones."""


class _InFlight(NamedTuple):
    job: DeviceJob
    started: torch.Event
    ended: torch.Event
    pointers: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    """References that keep the pointer arrays alive until the copy has read them."""


class CudaCopier:
    """A `Copier` over the streams of CUDA and similar platforms."""

    def __init__(self, layout: SlotLayout) -> None:
        self._layout = layout
        self._streams = {kind: current_platform.Stream() for kind in JobKind}
        self._in_flight: dict[int, _InFlight] = {}
        self._failed: list[FinishedJob] = []
        self._pinned: list[int] = []
        self._pinners: list[threading.Thread] = []
        self._closing = threading.Event()

    def submit(self, job: DeviceJob) -> None:
        """Queue the copy on the stream of its kind."""
        try:
            self._in_flight[job.job_id] = self._launch(job)
        except RuntimeError:
            _log.exception("kvtier: a copy could not be queued; job %s", job.job_id)
            self._failed.append(FinishedJob(job_id=job.job_id, copied=False, seconds=0.0))

    def poll(self) -> list[FinishedJob]:
        """Return the jobs whose end event has passed, and those that could not be queued."""
        finished, self._failed = self._failed, []
        for job_id, copy in list(self._in_flight.items()):
            if copy.ended.query():
                del self._in_flight[job_id]
                seconds = copy.started.elapsed_time(copy.ended) / 1000
                finished.append(FinishedJob(job_id=job_id, copied=True, seconds=seconds))
        return finished

    def wait(self, job_ids: Collection[int]) -> None:
        """Block until the end events of these jobs have passed."""
        for job_id in job_ids:
            if job_id in self._in_flight:
                self._in_flight[job_id].ended.synchronize()

    def attach(self, host: Host) -> None:
        """Pin the arena in the background; until then copies use pageable memory."""
        pinner = threading.Thread(target=self._pin, args=(host,), name="kvtier-pin", daemon=True)
        self._pinners.append(pinner)
        pinner.start()

    def close(self) -> None:
        """Wait for the copies in flight, then unpin."""
        self.wait(list(self._in_flight))
        self._in_flight.clear()
        self._closing.set()
        for pinner in self._pinners:
            pinner.join()
        while self._pinned:
            host_unregister(self._pinned.pop())

    def _launch(self, job: DeviceJob) -> _InFlight:
        pointers = _tensors(
            copy_pointers(
                self._layout,
                job.copies,
                is_store=job.kind is JobKind.STORE,
                host_address=int(job.host.ctypes.data),
                slot_bytes=job.host.shape[1],
            )
        )
        device, host, sizes = pointers
        source, target = (device, host) if job.kind is JobKind.STORE else (host, device)
        started, ended = torch.Event(enable_timing=True), torch.Event(enable_timing=True)
        stream = self._streams[job.kind]
        # Stores read blocks that the model has just written, and loads overwrite blocks that
        # the engine may still be clearing.
        stream.wait_stream(current_platform.current_stream())
        for copy in self._in_flight.values():
            if copy.job.kind is not job.kind and job.conflicts(copy.job):
                stream.wait_event(copy.ended)
        with current_platform.stream(stream):
            started.record(stream)
            if sizes.numel():
                # Slots are not written while they are read, so a load may read its source in
                # any order. Device blocks are stable in stream order only.
                ops.swap_blocks_batch(
                    source, target, sizes, is_src_access_order_any=job.kind is not JobKind.STORE
                )
            ended.record(stream)
        return _InFlight(job, started, ended, pointers)

    def _pin(self, host: Host) -> None:
        slots, slot_bytes = host.shape
        address = int(host.ctypes.data)
        step = max(1, _PIN_STEP_BYTES // slot_bytes)
        for first in range(0, slots, step):
            start, count = address + first * slot_bytes, min(step, slots - first)
            if self._closing.is_set() or not host_register(start, count * slot_bytes):
                return
            self._pinned.append(start)


def _tensors(pointers: CopyPointers) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Convert the pointers to the type that the copy takes: uint64 on XPU, else int64."""
    dtype = torch.uint64 if current_platform.is_xpu() else torch.int64
    device, host, sizes = (torch.from_numpy(array).view(dtype) for array in pointers)
    return device, host, sizes
