"""The shared tier against raw files of the same size and number, written and read alike.

A raw file is opened, written in one call and renamed, as the tier's are. What the tier does
besides (key space, header, checksums, verification, the exclusive name) is the difference.
"""

import itertools
import os
import shutil
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kvtier.bench.micro.parts import SPACE, Blocks, chain, fill, parents
from kvtier.bench.micro.timing import interleave, paired_ratio, spread
from kvtier.bench.rows import Row, Target, measured
from kvtier.blocks.checksum import Payload, Xxh3
from kvtier.blocks.key import BlockKey
from kvtier.blocks.layout import ALIGNMENT, BlockLayout
from kvtier.tiers.base import Buffer, Move, Outcome
from kvtier.tiers.shared.folder import FolderTier
from kvtier.tiers.shared.headers import aligned_buffer

SIZES = ((1 << 20, "1 MiB"), (4 << 20, "4 MiB"))
PACKED_BYTES = 128 << 10
PACKED_BLOCKS = 32
_BATCH_BYTES = 128 << 20
_THREADS = 4
_ROUNDS = 9


class _Equal(bytes):
    """A checksum that fits anything."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = bytes.__hash__


class _Unverified(Xxh3):
    """Reads as always, and looks at no payload."""

    def block(self, key: BlockKey, payload: Payload) -> bytes:
        return _Equal()


def measure_shared(scratch: Path) -> list[Row]:
    """Rows for read, write, packing and verification. Needs 1 GiB of room under `scratch`."""
    folder = scratch / "micro-shared"
    rows: list[Row] = []
    try:
        for size, label in SIZES:
            rows += _against_raw(_fresh(folder), size, label)
        rows.append(_packing(_fresh(folder)))
        rows.append(_verification(_fresh(folder)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return rows


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    return folder


def _memory(size: int) -> tuple[Blocks, Blocks]:
    """What is written and where it is read to."""
    count = _BATCH_BYTES // size
    source, target = aligned_buffer(2 * _BATCH_BYTES).reshape(2, count, size)
    fill(source)
    return source, target


def _against_raw(folder: Path, size: int, label: str) -> list[Row]:
    source, target = _memory(size)
    with ThreadPoolExecutor(_THREADS) as pool:
        raw = _RawFiles(folder / "raw", pool, source, target)
        tiered = _Tiered(folder / "kv", pool, source, target, 1)
        contenders: dict[str, Callable[[], None]] = {
            "raw write": raw.write,
            "write": tiered.write,
            "raw read": raw.read,
            "read": tiered.read,
            "raw clean": raw.clean,
            "clean": tiered.clean,
        }
        seconds = interleave(contenders, _ROUNDS, warm_up=2)
        tiered.write()
        target[:] = 0
        tiered.read()
        tiered.close()
    assert np.array_equal(source, target), "the tier returned other bytes than it was given"
    return [
        measured(
            f"shared {verb}, {label} blocks, share of raw files",
            (speed := _BATCH_BYTES / 1e9 / statistics.median(seconds[verb])),
            "GB/s",
            reference=speed / paired_ratio(seconds[verb], seconds[f"raw {verb}"]),
            target=Target(">=", 0.90),
            note=f"{'O_DIRECT' if raw.direct else 'buffered'}, {_THREADS} threads, one block a "
            f"file, {spread(seconds[verb])}",
        )
        for verb in ("read", "write")
    ]


def _packing(folder: Path) -> Row:
    source, target = _memory(PACKED_BYTES)
    with ThreadPoolExecutor(_THREADS) as pool:
        packed = _Tiered(folder / "packed", pool, source, target, PACKED_BLOCKS)
        single = _Tiered(folder / "single", pool, source, target, 1)
        contenders: dict[str, Callable[[], None]] = {
            "single": single.write,
            "packed": packed.write,
            "clean single": single.clean,
            "clean packed": packed.clean,
        }
        seconds = interleave(contenders, _ROUNDS, warm_up=2)
        packed.write()
        target[:] = 0
        packed.read()
        packed.close()
        single.close()
    assert np.array_equal(source, target), "the tier returned other bytes than it was given"
    speed = _BATCH_BYTES / 1e9 / statistics.median(seconds["packed"])
    return measured(
        f"shared write, 128 KiB blocks, {PACKED_BLOCKS} a file against one a file",
        speed,
        "GB/s",
        reference=speed / paired_ratio(seconds["packed"], seconds["single"]),
        target=Target(">=", 3.0),
        note=f"{_THREADS} threads, {spread(seconds['packed'])}",
    )


def _verification(folder: Path) -> Row:
    source, target = _memory(1 << 20)
    with ThreadPoolExecutor(_THREADS) as pool:
        verified = _Tiered(folder / "kv", pool, source, target, 8)
        verified.write()
        blind = _Tiered(folder / "kv", pool, source, target, 8, _Unverified())
        blind.keys = verified.keys
        seconds = interleave(
            {"blind": blind.read, "verified": verified.read}, 3 * _ROUNDS, warm_up=2
        )
        verified.close()
        blind.close()
    taken_s = statistics.median(seconds["verified"])
    return measured(
        "shared read, verification, time against a read that looks at nothing",
        taken_s * 1e3,
        "ms",
        reference=taken_s * 1e3 * paired_ratio(seconds["verified"], seconds["blind"]),
        target=Target("<=", 1.10),
        note=f"1 MiB blocks, 8 a file, {_THREADS} threads, {spread(seconds['verified'])}",
    )


class _RawFiles:
    """One file a block, as the tier writes it, and nothing else."""

    def __init__(
        self, folder: Path, pool: ThreadPoolExecutor, source: Blocks, target: Blocks
    ) -> None:
        folder.mkdir(mode=0o700)
        self._folder, self._pool, self._source, self._target = folder, pool, source, target
        self._header = aligned_buffer(ALIGNMENT)
        self._flags = os.O_CLOEXEC | os.O_DIRECT
        self.direct = True
        try:
            self._write_one(0)
        except OSError:
            self.direct, self._flags = False, os.O_CLOEXEC
        self.clean()

    def write(self) -> None:
        list(self._pool.map(self._write_one, range(len(self._source))))

    def read(self) -> None:
        list(self._pool.map(self._read_one, range(len(self._source))))

    def clean(self) -> None:
        for file in self._folder.iterdir():
            file.unlink()

    def _write_one(self, number: int) -> None:
        temporary, name = self._folder / f".{number}", self._folder / str(number)
        parts: list[Buffer] = [self._header, self._source[number]]
        fd = os.open(temporary, self._flags | os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.pwritev(fd, parts, 0)  # type: ignore[arg-type]  # see tiers/disk/files.py
        finally:
            os.close(fd)
        os.rename(temporary, name)

    def _read_one(self, number: int) -> None:
        fd = os.open(self._folder / str(number), self._flags | os.O_RDONLY)
        try:
            os.preadv(fd, [self._target[number]], ALIGNMENT)
        finally:
            os.close(fd)


class _Tiered:
    """Writes and reads the whole source through a tier, a file's blocks at a time."""

    def __init__(
        self,
        folder: Path,
        pool: ThreadPoolExecutor,
        source: Blocks,
        target: Blocks,
        segment_blocks: int,
        checksum: Xxh3 | None = None,
    ) -> None:
        layout = BlockLayout(block_bytes=source.shape[1], tokens_per_block=16)
        self._folder, self._pool, self._source, self._target = folder, pool, source, target
        self._tier = FolderTier(folder, layout, SPACE, segment_blocks=segment_blocks)
        if checksum is not None:
            self._tier._headers.checksum = checksum
        self._step = segment_blocks
        self._numbers = itertools.count()
        self.keys: list[BlockKey] = []

    def write(self) -> None:
        self.keys = chain(next(self._numbers), len(self._source))
        ancestors = parents(self.keys)

        def part(rows: range) -> None:
            moves = [Move(self.keys[row], self._source[row]) for row in rows]
            outcomes = self._tier.write_from(moves, ancestors[rows.start : rows.stop])
            assert set(outcomes) == {Outcome.DONE}, outcomes

        list(self._pool.map(part, self._parts()))

    def read(self) -> None:
        def part(rows: range) -> None:
            moves = [Move(self.keys[row], self._target[row]) for row in rows]
            assert set(self._tier.read_into(moves)) == {Outcome.DONE}

        list(self._pool.map(part, self._parts()))

    def clean(self) -> None:
        self._tier.delete(self.keys[:: self._step])

    def close(self) -> None:
        self._tier.close()

    def _parts(self) -> Sequence[range]:
        count = len(self._source)
        return [range(at, min(at + self._step, count)) for at in range(0, count, self._step)]
