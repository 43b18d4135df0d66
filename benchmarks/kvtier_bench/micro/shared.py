"""The shared tier compared with raw files of the same size and number.

A raw file is opened, written with one call and renamed, as the tier's files are. The difference is
what the tier adds: key space, header, checksums, verification and the exclusive name.
"""

import os
import shutil
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kvtier.blocks.checksum import Payload, Xxh3
from kvtier.blocks.key import BlockKey
from kvtier.blocks.layout import ALIGNMENT, BlockLayout
from kvtier.settings import SharedSettings
from kvtier.tiers.base import Buffer
from kvtier.tiers.shared.format import space_folder
from kvtier.tiers.shared.posix import PosixStore
from kvtier.tiers.shared.reading import aligned_buffer
from kvtier.tiers.shared.tier import FolderTier, StoreTier
from kvtier_bench.micro.parts import SPACE, Blocks, Tiered, memory
from kvtier_bench.micro.timing import interleave, paired_ratio, spread, throughput
from kvtier_bench.rows import Row, Target, measured

SIZES = ((1 << 20, "1 MiB"), (4 << 20, "4 MiB"))
PACKED_BYTES = 128 << 10
PACKED_BLOCKS = 32
_BATCH_BYTES = 128 << 20
_THREADS = SharedSettings(path="").io_threads
"""An engine's default; raw files get the same number."""
_ROUNDS = 9
_FOLDERS = 16**3
"""The number of folders in a key space, which the tier creates as they are needed."""


class _Equal(bytes):
    """A checksum that equals any other."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = bytes.__hash__


class _Unverified(Xxh3):
    """A checksum algorithm that accepts every payload without reading it."""

    def block(self, key: BlockKey, payload: Payload) -> bytes:
        return _Equal()


def measure_shared(scratch: Path) -> list[Row]:
    """Return rows for read, write, packing and verification. Needs 1 GiB below `scratch`."""
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


def _open(folder: Path, size: int, segment_blocks: int) -> FolderTier:
    """Open a tier whose folders already exist, as in a store that is in use."""
    layout = BlockLayout(block_bytes=size, tokens_per_block=16)
    tier = FolderTier(folder, layout, SPACE, segment_blocks=segment_blocks)
    for number in range(_FOLDERS):
        (folder / space_folder(SPACE) / f"blocks/{number:03x}").mkdir(parents=True, mode=0o700)
    return tier


def _open_blind(folder: Path, size: int, segment_blocks: int) -> StoreTier:
    layout = BlockLayout(block_bytes=size, tokens_per_block=16)
    return StoreTier(
        "blind",
        PosixStore(folder),
        layout,
        SPACE,
        segment_blocks=segment_blocks,
        io_threads=_THREADS,
        checksum=_Unverified(),
    )


def _against_raw(folder: Path, size: int, label: str) -> list[Row]:
    source, target = memory(_BATCH_BYTES, size)
    with ThreadPoolExecutor(_THREADS) as pool:
        raw = _RawFiles(folder / "raw", pool, source, target)
        tiered = Tiered(_open(folder / "kv", size, 1), pool, source, target, 1)
        contenders: dict[str, Callable[[], None]] = {
            "raw write": raw.write,
            "write": tiered.write,
            "raw read": raw.read,
            "read": tiered.read,
            "raw clean": raw.clean,
            "clean": tiered.clean,
        }
        seconds = interleave(contenders, _ROUNDS, warm_up=2)
        tiered.verify()
        tiered.close()
    how = f"{'O_DIRECT' if raw.direct else 'buffered'}, {_THREADS} threads, one block a file"
    return [
        throughput(
            f"shared {verb}, {label} blocks, share of raw files",
            _BATCH_BYTES,
            seconds[verb],
            seconds[f"raw {verb}"],
            Target(">=", 0.90),
            how,
        )
        for verb in ("read", "write")
    ]


def _packing(folder: Path) -> Row:
    size, blocks = PACKED_BYTES, PACKED_BLOCKS
    source, target = memory(_BATCH_BYTES, size)
    with ThreadPoolExecutor(_THREADS) as pool:
        packed = Tiered(_open(folder / "packed", size, blocks), pool, source, target, blocks)
        single = Tiered(_open(folder / "single", size, 1), pool, source, target, 1)
        contenders: dict[str, Callable[[], None]] = {
            "single": single.write,
            "packed": packed.write,
            "clean single": single.clean,
            "clean packed": packed.clean,
        }
        seconds = interleave(contenders, _ROUNDS, warm_up=2)
        packed.verify()
        packed.close()
        single.close()
    return throughput(
        f"shared write, 128 KiB blocks, {blocks} a file against one a file",
        _BATCH_BYTES,
        seconds["packed"],
        seconds["single"],
        Target(">=", 3.0),
        f"{_THREADS} threads",
    )


def _verification(folder: Path) -> Row:
    size, blocks = 1 << 20, 8
    source, target = memory(_BATCH_BYTES, size)
    with ThreadPoolExecutor(_THREADS) as pool:
        verified = Tiered(_open(folder / "kv", size, blocks), pool, source, target, blocks)
        verified.write()
        blind = Tiered(_open_blind(folder / "kv", size, blocks), pool, source, target, blocks)
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
    """Blocks in plain files, one each, written as the tier writes them."""

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
            os.pwritev(fd, parts, 0)  # type: ignore[arg-type]  # see tiers/files.py
        finally:
            os.close(fd)
        os.rename(temporary, name)

    def _read_one(self, number: int) -> None:
        fd = os.open(self._folder / str(number), self._flags | os.O_RDONLY)
        try:
            os.preadv(fd, [self._target[number]], ALIGNMENT)
        finally:
            os.close(fd)
