"""The disk tier compared with a raw slab of the same file system, sizes, threads and alignment.

The raw slab is the limit of what the disk can do through Python: preadv and pwritev on a
preallocated file, with O_DIRECT if supported, and without index, log or checksum.
"""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from kvtier.blocks.layout import BlockLayout
from kvtier.tiers.disk import DiskTier
from kvtier_bench.micro.parts import SPACE, Blocks, Tiered, each_part, memory
from kvtier_bench.micro.timing import interleave, throughput
from kvtier_bench.rows import Row, Target

SIZES = ((64 << 10, "64 KiB"), (1 << 20, "1 MiB"), (4 << 20, "4 MiB"))
_BATCH_BYTES = 128 << 20
_THREADS = 4
_ROUNDS = 9


def measure_disk(scratch: Path) -> list[Row]:
    """Return rows for read and write of every block size. Needs 1 GiB below `scratch`."""
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
    step = -(-count // _THREADS)
    tier = DiskTier(
        folder / "tier",
        2 * _BATCH_BYTES + (64 << 20),
        BlockLayout(block_bytes=size, tokens_per_block=16),
        SPACE,
        io_threads=_THREADS,
    )
    raw = _RawSlab(folder / "raw", size, count)
    source, target = memory(_BATCH_BYTES, size)
    with ThreadPoolExecutor(_THREADS) as pool:
        tiered = Tiered(tier, pool, source, target, step)
        seconds = interleave(
            {
                "raw write": lambda: each_part(pool, count, step, partial(raw.write, source)),
                "write": tiered.replace,
                "raw read": lambda: each_part(pool, count, step, partial(raw.read, target)),
                "read": tiered.read,
            },
            _ROUNDS,
            warm_up=2,
        )
        tiered.verify()
        tiered.close()
    raw.close()
    how = f"{'O_DIRECT' if raw.direct else 'buffered'}, {_THREADS} threads"
    return [
        throughput(
            f"disk {verb}, {label}, share of a raw slab",
            _BATCH_BYTES,
            seconds[verb],
            seconds[f"raw {verb}"],
            Target(">=", 0.90),
            how,
        )
        for verb in ("read", "write")
    ]


class _RawSlab:
    """A preallocated file of `count` blocks."""

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
