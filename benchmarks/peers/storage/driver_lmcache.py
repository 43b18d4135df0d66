"""The driver of LMCache's L2 adapters `fs_native` and `raw_block`, controlled by `run.py`.

Engines are `fs_native` (C++ workers, one file per block), and `posix` and `io_uring` (`raw_block`
on a file that was fully written before, in place of a device). The adapters get memory objects in
one page-aligned buffer, as from LMCache's own memory manager.
"""

import os
import select
from pathlib import Path

import numpy as np
import torch
from lmcache.v1.distributed.api import ObjectKey
from lmcache.v1.distributed.internal_api import L1MemoryDesc
from lmcache.v1.distributed.l2_adapters import create_l2_adapter
from lmcache.v1.distributed.l2_adapters.fs_native_l2_adapter import FSNativeL2AdapterConfig
from lmcache.v1.distributed.l2_adapters.raw_block_l2_adapter import RawBlockL2AdapterConfig
from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj
from lmcache.v1.platform import consume_fd
from worker import Options, Storage, serve

_PAGE = 4096
_META_BYTES = 256 << 20
"""The default size of the region in which `raw_block` keeps its index."""
_TIMEOUT_S = 120.0


class LmcacheAdapter(Storage):
    def __init__(self, options: Options, source: np.ndarray, target: np.ndarray) -> None:
        self._sources, self._targets = _objects(source), _objects(target)
        self._adapter = create_l2_adapter(
            _config(options), L1MemoryDesc(source.ctypes.data, source.nbytes, _PAGE)
        )
        # raw_block runs a task in one thread, so each thread gets one; fs_native divides a task.
        self._tasks = 1 if options.engine == "fs_native" else options.threads or 4

    def write(self, batch: int) -> None:
        tasks = {
            self._adapter.submit_store_task(keys, objects)
            for keys, objects in self._parts(batch, self._sources)
        }
        descriptor = self._adapter.get_store_event_fd()
        while tasks:
            _wait(descriptor)
            for task, result in self._adapter.pop_completed_store_tasks().items():
                if not result.is_successful():
                    raise RuntimeError("not every block was stored")
                tasks.remove(task)

    def read(self, batch: int) -> None:
        tasks = {
            self._adapter.submit_load_task(keys, objects): len(keys)
            for keys, objects in self._parts(batch, self._targets)
        }
        descriptor = self._adapter.get_load_event_fd()
        while tasks:
            _wait(descriptor)
            for task in list(tasks):
                loaded = self._adapter.query_load_result(task)
                if loaded is None:
                    continue
                if loaded.popcount() != tasks.pop(task):
                    raise RuntimeError("not every block was loaded")

    def clean(self, batch: int) -> None:
        self._adapter.delete(self._keys(batch))

    def close(self) -> None:
        self._adapter.close()

    def _keys(self, batch: int) -> list[ObjectKey]:
        head = batch.to_bytes(16, "big")
        return [
            ObjectKey(chunk_hash=head + row.to_bytes(16, "big"), model_name="bench", kv_rank=0)
            for row in range(len(self._sources))
        ]

    def _parts(self, batch: int, objects: list[TensorMemoryObj]):
        keys = self._keys(batch)
        for part in range(self._tasks):
            if keys[part :: self._tasks]:
                yield keys[part :: self._tasks], objects[part :: self._tasks]


def _config(options: Options) -> FSNativeL2AdapterConfig | RawBlockL2AdapterConfig:
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.engine == "fs_native":
        workers = {"num_workers": options.threads} if options.threads else {}
        return FSNativeL2AdapterConfig(
            base_path=str(options.folder), use_odirect=options.direct, **workers
        )
    slot_bytes = options.block_bytes + _PAGE
    path = options.folder / "device"
    # There are slots for two batches; released slots are reused.
    _write_zeros(path, _META_BYTES + 2 * options.count * slot_bytes)
    workers = (
        {"num_store_workers": options.threads, "num_load_workers": options.threads}
        if options.threads
        else {}
    )
    return RawBlockL2AdapterConfig(
        device_path=str(path),
        slot_bytes=slot_bytes,
        use_odirect=options.direct,
        io_engine=options.engine,
        **workers,
    )


def _write_zeros(path: Path, size: int) -> None:
    zeros = bytes(4 << 20)
    with path.open("wb") as file:
        for start in range(0, size, len(zeros)):
            file.write(zeros[: size - start])
        file.flush()
        os.fsync(file.fileno())


def _objects(blocks: np.ndarray) -> list[TensorMemoryObj]:
    block_bytes = blocks.shape[1]
    return [
        TensorMemoryObj(
            raw_data=torch.from_numpy(block),
            metadata=MemoryObjMetadata(
                shape=torch.Size([block_bytes]),
                dtype=torch.uint8,
                address=row * block_bytes,
                phy_size=block_bytes,
                fmt=MemoryFormat.KV_2LTD,
                ref_count=1,
            ),
            parent_allocator=None,
        )
        for row, block in enumerate(blocks)
    ]


def _wait(descriptor: int) -> None:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    if not poller.poll(_TIMEOUT_S * 1000):
        raise TimeoutError("the adapter did not answer")
    consume_fd(descriptor)


if __name__ == "__main__":
    serve(LmcacheAdapter)
