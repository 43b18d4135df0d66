"""The driver of kvtier's shared tier in a folder, controlled by `run.py`.

The blocks of a batch form one prefix. One transfer passes it to the transfer engine, which divides
it among the tier's threads as it does inside an engine with 16 tokens per block.
"""

import numpy as np
from worker import Options, Storage, serve

from kvtier.blocks.key import BlockKey
from kvtier.blocks.layout import BlockLayout
from kvtier.cache.build import blocks_per_segment
from kvtier.settings.tree import SharedSettings
from kvtier.tiers.base import BlockMove, Outcome
from kvtier.tiers.shared.tier import FolderTier
from kvtier.transfer.base import Direction, Transfer
from kvtier.transfer.engine import TransferEngine
from kvtier_bench.micro.parts import SPACE, chain, parents

TOKENS = 16
_DEADLINE_S = 60.0


class KvtierFolder(Storage):
    def __init__(self, options: Options, source: np.ndarray, target: np.ndarray) -> None:
        self._source, self._target = source, target
        defaults = SharedSettings(path="")
        layout = BlockLayout(block_bytes=options.block_bytes, tokens_per_block=TOKENS)
        self._files = blocks_per_segment(defaults.tokens_per_file, layout)
        self._tier = FolderTier(
            options.folder,
            layout,
            SPACE,
            segment_blocks=self._files,
            direct="always" if options.direct else "never",
            io_threads=options.threads or defaults.io_threads,
        )
        self._engine = TransferEngine([self._tier], layout.slot_bytes, len(source))

    def write(self, batch: int) -> None:
        keys = self._keys(batch)
        self._run(Direction.WRITE, keys, self._source, parents(keys))

    def read(self, batch: int) -> None:
        self._run(Direction.READ, self._keys(batch), self._target)

    def clean(self, batch: int) -> None:
        self._tier.delete(self._keys(batch)[:: self._files])

    def close(self) -> None:
        self._engine.close(_DEADLINE_S)
        self._tier.close()

    def _keys(self, batch: int) -> list[BlockKey]:
        return chain(batch, len(self._source))

    def _run(self, direction: Direction, keys: list[BlockKey], blocks: np.ndarray, above=()):
        rows = list(range(len(keys)))
        moves = list(map(BlockMove, keys, blocks))
        if not self._engine.submit(Transfer(1, direction, rows, keys, moves, above)):
            raise RuntimeError("the transfer engine refused the transfer")
        if not self._engine.drain(_DEADLINE_S):
            raise RuntimeError(f"not done in {_DEADLINE_S} s")
        for completion in self._engine.poll():
            if set(completion.outcomes or ()) != {Outcome.DONE}:
                raise RuntimeError(f"not every block was moved: {completion.outcomes}")


if __name__ == "__main__":
    serve(KvtierFolder)
