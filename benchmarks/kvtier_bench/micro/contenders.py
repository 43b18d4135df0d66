"""A tier as a contender: a batch of blocks written and read through it by the threads of a pool.

Why: what a tier below RAM costs over the raw files that it uses is measured alike for each.
"""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from kvtier.blocks.key import BlockKey
from kvtier.tiers.base import BlockMove, Outcome, Tier
from kvtier.tiers.shared.reading import aligned_buffer
from kvtier_bench.micro.parts import Blocks, chain, fill, parents


def memory(batch_bytes: int, size: int) -> tuple[Blocks, Blocks]:
    """What is written, filled, and where it is read to: blocks of `size`, at whole pages."""
    source, target = aligned_buffer(2 * batch_bytes).reshape(2, batch_bytes // size, size)
    fill(source)
    return source, target


def each_part(
    pool: ThreadPoolExecutor, count: int, step: int, work: Callable[[range], None]
) -> None:
    """Have the pool do `work` on `count` rows, `step` at a time. Raises what `work` raises."""
    list(pool.map(work, [range(at, min(at + step, count)) for at in range(0, count, step)]))


class Tiered:
    """Writes all of `source` as one new chain, and reads it into `target`, `step` blocks a call."""

    def __init__(
        self, tier: Tier, pool: ThreadPoolExecutor, source: Blocks, target: Blocks, step: int
    ) -> None:
        self._tier, self._pool, self._source, self._target = tier, pool, source, target
        self._step = step
        self._numbers = itertools.count()
        self.keys: list[BlockKey] = []
        """Of the chain that `read` and `clean` are about."""

    def write(self) -> None:
        """The chain written before stays where it is."""
        self.keys = chain(next(self._numbers), len(self._source))
        ancestors = parents(self.keys)

        def part(rows: range) -> None:
            moves = [BlockMove(self.keys[row], self._source[row]) for row in rows]
            outcomes = self._tier.write_from(moves, ancestors[rows.start : rows.stop])
            assert set(outcomes) == {Outcome.DONE}, outcomes

        each_part(self._pool, len(self._source), self._step, part)

    def read(self) -> None:
        """All of it has to be there."""

        def part(rows: range) -> None:
            moves = [BlockMove(self.keys[row], self._target[row]) for row in rows]
            assert set(self._tier.read_into(moves)) == {Outcome.DONE}

        each_part(self._pool, len(self._source), self._step, part)

    def clean(self) -> None:
        """Have the tier forget the chain."""
        self._tier.delete(self.keys)

    def replace(self) -> None:
        """What a full tier does: the old blocks go, the new ones take their room."""
        self.clean()
        self.write()

    def verify(self) -> None:
        """Raises AssertionError where the tier returns other bytes than it was given."""
        self.replace()
        self._target[:] = 0
        self.read()
        assert np.array_equal(self._source, self._target), "other bytes came back"

    def close(self) -> None:
        """Close the tier."""
        self._tier.close()
