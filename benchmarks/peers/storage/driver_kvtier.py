"""kvtier's shared tier in a folder, told what to do by `run.py`.

The blocks of a batch are one prefix. A thread writes or reads one file at a time: 32 blocks where
they are small, which is the default at 16 tokens a block, and one where they have 1 MiB or more,
as the peers have it.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from worker import Options, Storage, serve

from kvtier.bench.micro.parts import SPACE, chain, parents
from kvtier.blocks.key import BlockKey
from kvtier.blocks.layout import BlockLayout
from kvtier.settings.tree import Shared
from kvtier.tiers.base import Move, Outcome
from kvtier.tiers.shared.folder import FolderTier

FILE_BLOCKS = 32
SINGLE_BYTES = 1 << 20


class KvtierFolder(Storage):
    def __init__(self, options: Options, source: np.ndarray, target: np.ndarray) -> None:
        self._source, self._target = source, target
        self._step = FILE_BLOCKS if options.block_bytes < SINGLE_BYTES else 1
        threads = options.threads or Shared(path="").io_threads
        self._pool = ThreadPoolExecutor(threads)
        self._tier = FolderTier(
            options.folder,
            BlockLayout(block_bytes=options.block_bytes, tokens_per_block=16),
            SPACE,
            segment_blocks=self._step,
            direct="always" if options.direct else "never",
            io_threads=threads,
        )

    def write(self, batch: int) -> None:
        keys = self._keys(batch)
        ancestors = parents(keys)

        def part(start: int) -> list[Outcome]:
            rows = slice(start, start + self._step)
            moves = list(map(Move, keys[rows], self._source[rows]))
            return self._tier.write_from(moves, ancestors[rows])

        self._run(part)

    def read(self, batch: int) -> None:
        keys = self._keys(batch)

        def part(start: int) -> list[Outcome]:
            rows = slice(start, start + self._step)
            return self._tier.read_into(list(map(Move, keys[rows], self._target[rows])))

        self._run(part)

    def clean(self, batch: int) -> None:
        self._tier.delete(self._keys(batch)[:: self._step])

    def close(self) -> None:
        self._pool.shutdown()
        self._tier.close()

    def _keys(self, batch: int) -> list[BlockKey]:
        return chain(batch, len(self._source))

    def _run(self, part) -> None:
        for outcomes in self._pool.map(part, range(0, len(self._source), self._step)):
            if set(outcomes) != {Outcome.DONE}:
                raise RuntimeError(f"not every block was moved: {outcomes}")


if __name__ == "__main__":
    serve(KvtierFolder)
