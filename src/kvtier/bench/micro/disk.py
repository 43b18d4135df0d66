"""The disk tier against a raw slab: the same file system, sizes, threads and alignment, in one run.

The raw side is what the disk can do through Python: preadv and pwritev on a preallocated file
with O_DIRECT where there is one, no index, no log, no checksum.
"""

import mmap
import os
import shutil
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kvtier.bench.micro.parts import SPACE, Blocks, chain, fill, parents
from kvtier.bench.micro.timing import interleave, paired_ratio, spread
from kvtier.bench.rows import Row, Target, measured
from kvtier.blocks.key import BlockKey
from kvtier.blocks.layout import BlockLayout
from kvtier.tiers.base import Move, Outcome
from kvtier.tiers.disk import DiskTier

SIZES = ((64 << 10, "64 KiB"), (1 << 20, "1 MiB"), (4 << 20, "4 MiB"))
_BATCH_BYTES = 128 << 20
_THREADS = 4
_ROUNDS = 9


def measure_disk(scratch: Path) -> list[Row]:
    """Rows for read and write of every block size. Needs 1 GiB of room under `scratch`."""
    rows: list[Row] = []
    folder = scratch / "micro-disk"
    try:
        for size, label in SIZES:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, mode=0o700)
            rows += _measure(folder, size, label)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return rows


def _measure(folder: Path, size: int, label: str) -> list[Row]:
    count = _BATCH_BYTES // size
    tier = DiskTier(
        folder / "tier",
        2 * _BATCH_BYTES + (64 << 20),
        BlockLayout(block_bytes=size, tokens_per_block=16),
        SPACE,
        io_threads=_THREADS,
    )
    raw = _RawSlab(folder / "raw", size, count)
    memory = mmap.mmap(-1, 2 * _BATCH_BYTES)
    source, target = np.frombuffer(memory, np.uint8).reshape(2, count, size)
    fill(source)
    with ThreadPoolExecutor(_THREADS) as pool:
        tiered = _Tiered(tier, pool, source, target)
        seconds = interleave(
            {
                "raw write": lambda: _spread_over(pool, count, lambda r: raw.write(source, r)),
                "write": tiered.write,
                "raw read": lambda: _spread_over(pool, count, lambda r: raw.read(target, r)),
                "read": tiered.read,
            },
            _ROUNDS,
            warm_up=2,
        )
        target[:] = 0
        tiered.read()
    assert np.array_equal(source, target), "the tier returned other bytes than it was given"
    direct = raw.direct
    raw.close()
    tier.close()
    return [
        measured(
            f"disk {verb}, {label}, share of a raw slab",
            (speed := _BATCH_BYTES / 1e9 / statistics.median(seconds[verb])),
            "GB/s",
            reference=speed / paired_ratio(seconds[verb], seconds[f"raw {verb}"]),
            target=Target(">=", 0.90),
            note=f"{'O_DIRECT' if direct else 'buffered'}, {_THREADS} threads, "
            f"{spread(seconds[verb])}",
        )
        for verb in ("read", "write")
    ]


def _spread_over(pool: ThreadPoolExecutor, count: int, work: Callable[[range], None]) -> None:
    step = -(-count // _THREADS)
    list(pool.map(work, [range(at, min(at + step, count)) for at in range(0, count, step)]))


class _Tiered:
    """Writes and reads the whole source through the tier, by the pool's threads."""

    def __init__(
        self, tier: DiskTier, pool: ThreadPoolExecutor, source: Blocks, target: Blocks
    ) -> None:
        self._tier, self._pool, self._source, self._target = tier, pool, source, target
        self._number = 0
        self._keys: list[BlockKey] = []

    def write(self) -> None:
        # What a full tier does: the old blocks go, the new ones take their slots.
        self._tier.delete(self._keys)
        self._number += 1
        self._keys = chain(self._number, len(self._source))
        ancestors = parents(self._keys)

        def part(rows: range) -> None:
            moves = [Move(self._keys[row], self._source[row]) for row in rows]
            outcomes = self._tier.write_from(moves, ancestors[rows.start : rows.stop])
            assert set(outcomes) == {Outcome.DONE}, outcomes

        _spread_over(self._pool, len(self._source), part)

    def read(self) -> None:
        def part(rows: range) -> None:
            moves = [Move(self._keys[row], self._target[row]) for row in rows]
            assert set(self._tier.read_into(moves)) == {Outcome.DONE}

        _spread_over(self._pool, len(self._source), part)


class _RawSlab:
    """A preallocated file of `count` blocks and nothing else."""

    def __init__(self, path: Path, size: int, count: int) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self.direct = True
        try:
            self._fd = os.open(path, flags | os.O_DIRECT, 0o600)
        except OSError:
            self.direct = False
            self._fd = os.open(path, flags, 0o600)
        self._size = size
        os.posix_fallocate(self._fd, 0, size * count)

    def write(self, source: Blocks, rows: range) -> None:
        for row in rows:
            os.pwritev(self._fd, [source[row]], row * self._size)

    def read(self, target: Blocks, rows: range) -> None:
        for row in rows:
            os.preadv(self._fd, [target[row]], row * self._size)

    def close(self) -> None:
        os.close(self._fd)
