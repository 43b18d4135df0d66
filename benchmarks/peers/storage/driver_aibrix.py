"""The driver of AIBrix kvcache's second level on RocksDB, controlled by `run.py`.

It uses `L2Cache` as AIBrix's cache manager builds it, without the RAM level above. Operations per
batch (32) and RocksDB settings are the defaults. Block hashes are passed in, so no tokens are
hashed. RocksDB has no O_DIRECT here, and keeps the latest writes in its memtables.
"""

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from worker import Options, Storage, serve

_TOKENS = 16


class AibrixRocksDb(Storage):
    def __init__(self, options: Options, source: np.ndarray, target: np.ndarray) -> None:
        if options.direct:
            sys.exit("the RocksDB connector has no O_DIRECT")
        os.environ["AIBRIX_KV_CACHE_OL_ROCKSDB_ROOT"] = str(options.folder)
        # The variable is read at import.
        from aibrix_kvcache import envs
        from aibrix_kvcache.cache_hashable import BlockHashes
        from aibrix_kvcache.l2 import L2Cache
        from aibrix_kvcache.memory import ExternalMemoryRegion
        from aibrix_kvcache.spec import KVCacheBlockLayout, KVCacheBlockSpec, KVCacheTensorSpec

        self._block_hashes = BlockHashes
        self._sources, self._targets = (
            [
                ExternalMemoryRegion(slab, start, options.block_bytes)
                for start in range(0, source.size, options.block_bytes)
            ]
            for slab in (torch.from_numpy(blocks.reshape(-1)) for blocks in (source, target))
        )
        # K and V of two bytes each, 8 heads of size 64, and as many layers as fill a block.
        layers = options.block_bytes // (2 * 2 * _TOKENS * 8 * 64)
        tensors = KVCacheTensorSpec(heads=list(range(8)), layers=list(range(layers)), head_size=64)
        spec = KVCacheBlockSpec(_TOKENS, torch.float16, KVCacheBlockLayout.LCND, tensors)
        if spec.block_nbytes != options.block_bytes:
            sys.exit(f"no tensor shape has {options.block_bytes} bytes")
        workers = options.threads or envs.AIBRIX_KV_CACHE_OL_L2_CACHE_NUM_ASYNC_WORKERS
        self._executor = ThreadPoolExecutor(workers)
        self._loop = asyncio.new_event_loop()
        self._cache = L2Cache(
            backend_name="ROCKSDB",
            placement_policy=envs.AIBRIX_KV_CACHE_OL_L2_CACHE_PLACEMENT_POLICY,
            namespace=envs.AIBRIX_KV_CACHE_OL_L2_CACHE_NAMESPACE,
            block_spec=spec,
            executor=self._executor,
            op_batch=envs.AIBRIX_KV_CACHE_OL_L2_CACHE_OP_BATCH,
        )
        self._cache.open().raise_if_not_ok()

    def write(self, batch: int) -> None:
        self._check(self._cache.put(None, self._query(batch), self._sources))

    def settle(self, batch: int) -> None:
        """Flush memtables to table files, for which the cache itself has no call."""
        self._cache._backend.store.flush()

    def read(self, batch: int) -> None:
        self._check(self._cache.get(None, self._query(batch), self._targets))

    def clean(self, batch: int) -> None:
        self._loop.run_until_complete(self._cache.delete(None, self._query(batch)))

    def close(self) -> None:
        self._cache.close()
        self._executor.shutdown()
        self._loop.close()

    def _query(self, batch: int):
        hashes = [f"{batch:032x}{row:032x}" for row in range(len(self._sources))]
        return self._block_hashes(hashes, _TOKENS)

    def _check(self, call) -> None:
        status = self._loop.run_until_complete(call)
        if not status.is_ok() or status.get() != len(self._sources):
            raise RuntimeError(f"not every block was moved: {status}")


if __name__ == "__main__":
    serve(AibrixRocksDb)
