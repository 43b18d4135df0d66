"""vLLM's own multi-tier offloading with a worker that runs on the CPU platform.

The engine benchmark compares kvtier with it, and vLLM refuses to build its worker without an
accelerator. Scheduler half, RAM tier, eviction and lower tiers are vLLM's own; only the worker is
replaced by a synchronous torch copy between the engine's blocks and vLLM's shared region. Load it
with `spec_module_path=native_tiering` and this folder on PYTHONPATH. Written for vLLM 0.32, one
block per chunk and one worker.
"""

import time
from collections.abc import Iterator

import torch
from vllm.v1.kv_offload.base import (
    BlockIDsLoadStoreSpec,
    CanonicalKVCaches,
    GPULoadStoreSpec,
    LoadStoreSpec,
    OffloadingWorker,
    TransferResult,
)
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec


class TorchCopyWorker(OffloadingWorker):
    """A worker that copies whole blocks synchronously in `submit_store` and `submit_load`."""

    def __init__(self, kv_caches: CanonicalKVCaches, region: SharedOffloadRegion) -> None:
        self._region = region
        self._refs = kv_caches.group_data_refs
        self._device = [
            cache.tensor.view(torch.int8).view(-1, cache.page_size_bytes)
            for cache in kv_caches.tensors
        ]
        self._host = [
            region.create_next_worker_view(cache.page_size_bytes) for cache in kv_caches.tensors
        ]
        self._finished: list[TransferResult] = []

    def submit_store(
        self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec
    ) -> bool:
        """Copy device blocks to host chunks."""
        return self._copy(job_id, src_spec, dst_spec, self._device, self._host)

    def submit_load(self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec) -> bool:
        """Copy host chunks to device blocks."""
        return self._copy(job_id, src_spec, dst_spec, self._host, self._device)

    def get_finished(self) -> list[TransferResult]:
        """Return the results of all jobs submitted since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def wait(self, job_ids: set[int]) -> None:
        """Return at once, because jobs finish while they are submitted."""

    def shutdown(self) -> None:
        """Release the views of the shared region, and then the region."""
        self._host.clear()
        self._region.cleanup()

    def _copy(
        self,
        job_id: int,
        source: BlockIDsLoadStoreSpec,
        target: BlockIDsLoadStoreSpec,
        read_from: list[torch.Tensor],
        write_to: list[torch.Tensor],
    ) -> bool:
        started_s = time.perf_counter()
        device = source if isinstance(source, GPULoadStoreSpec) else target
        copied = 0
        for layers, rows in self._rows_of_groups(device.group_sizes):
            sources, targets = source.block_ids[rows].tolist(), target.block_ids[rows].tolist()
            for layer in layers:
                for origin, goal in zip(sources, targets, strict=True):
                    write_to[layer][goal].copy_(read_from[layer][origin])
                    copied += read_from[layer].shape[1]
        elapsed_s = time.perf_counter() - started_s
        self._finished.append(TransferResult(job_id, True, copied, elapsed_s))
        return True

    def _rows_of_groups(self, sizes: list[int]) -> Iterator[tuple[list[int], slice]]:
        start = 0
        for refs, size in zip(self._refs, sizes, strict=True):
            yield [ref.tensor_idx for ref in refs], slice(start, start + size)
            start += size


class NativeTieringOnCPU(TieringOffloadingSpec):
    """A TieringOffloadingSpec whose worker needs no accelerator."""

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        """Return the worker of this process; create it at the first call."""
        if self.blocks_per_chunk != 1:
            raise ValueError("native_tiering copies one block per chunk: leave block_size unset")
        if self._worker is None:
            region = SharedOffloadRegion(
                engine_id=self._engine_id,
                num_chunks=self.num_chunks,
                rank=self.config.parallel.rank,
                kv_bytes_per_chunk=self.kv_bytes_per_chunk,
                cpu_page_size=self.cpu_page_size_per_worker,
            )
            self._worker = TorchCopyWorker(kv_caches, region)
        return self._worker
