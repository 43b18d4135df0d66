"""Helpers for the tests of the disk tier: a key space, small tiers, failing system calls."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from kvtier.blocks.key import BlockKey, KeySpace
from kvtier.blocks.layout import ALIGNMENT, BlockLayout
from kvtier.testing.samples import aligned, sample_space
from kvtier.tiers.base import BlockMove, Buffer, Outcome
from kvtier.tiers.disk import DiskTier
from kvtier.tiers.disk.folder import DiskFolder, lock_folder
from kvtier.tiers.disk.opening import capacity_for
from kvtier.tiers.files import SystemCalls
from tests.tiers.broken import BadDay

SPACE = sample_space()
LAYOUT = BlockLayout(block_bytes=4000, tokens_per_block=16)
SLOT_BYTES = LAYOUT.slot_bytes

_RANDOM = np.random.default_rng(5).integers(0, 256, SLOT_BYTES, dtype=np.uint8)


def other_space(**fields: Any) -> KeySpace:
    return msgspec.structs.replace(SPACE, **fields)


def make(folder: Path, blocks: int = 16, layout: BlockLayout = LAYOUT, **options: Any) -> DiskTier:
    return DiskTier(folder, capacity_for(blocks, layout.slot_bytes), layout, SPACE, **options)


def plain_folder(path: Path) -> DiskFolder:
    return lock_folder(path, SystemCalls())


def key(number: int) -> BlockKey:
    return BlockKey(b"%032d" % number + bytes(4))


def content(number: int) -> Buffer:
    """Return the payload of block `number`, in memory that is aligned for direct I/O."""
    block = aligned(_RANDOM)
    block.view(np.uint64)[:] += number
    return block


def blank() -> Buffer:
    return aligned(np.zeros(SLOT_BYTES, np.uint8))


def write(tier: DiskTier, numbers: Sequence[int]) -> list[Outcome]:
    """Write blocks, each the child of the number below it."""
    moves = [BlockMove(key(n), content(n)) for n in numbers]
    return tier.write_from(moves, [key(n - 1) if n else None for n in numbers])


def read(tier: DiskTier, numbers: Sequence[int]) -> list[Outcome]:
    """Read blocks, and check the content of those that are DONE."""
    moves = [BlockMove(key(n), blank()) for n in numbers]
    outcomes = tier.read_into(moves)
    for number, move, outcome in zip(numbers, moves, outcomes, strict=True):
        if outcome is Outcome.DONE:
            good = content(number)[: LAYOUT.block_bytes]
            assert np.array_equal(move.buffer[: LAYOUT.block_bytes], good), "DONE with wrong bytes"
    return outcomes


def held(tier: DiskTier) -> set[int]:
    """Return the numbers of the blocks that a scan reports."""
    numbers: set[int] = set()
    page = tier.scan()
    while True:
        numbers.update(int(stored.key[:32]) for stored in page.blocks)
        if page.cursor is None:
            return numbers
        page = tier.scan(page.cursor)


def occupied(folder: Path) -> int:
    """Return the bytes that all files of the folder occupy on the device."""
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir())


class BrokenFiles(BadDay, SystemCalls):
    """The system calls of a slab, which can be made to fail."""

    def open(self, name: str, flags: int, folder_fd: int) -> int:
        self._begin("open")
        return super().open(name, flags, folder_fd)

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self._begin("preadv")
        kept = self._cut("preadv", buffers)
        return super().preadv(fd, kept, offset) if kept else 0

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self._begin("pwritev")
        kept = self._cut("pwritev", buffers)
        return super().pwritev(fd, kept, offset) if kept else 0

    def write(self, fd: int, data: bytes) -> int:
        self._begin("write")
        return super().write(fd, data[: self.short.get("write", len(data))])

    def allocate(self, fd: int, size: int) -> None:
        self._begin("allocate")
        super().allocate(fd, min(size, self.short.get("allocate", size)))
        if self.short.get("allocate", size) < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def truncate(self, fd: int, size: int) -> None:
        self._begin("truncate")
        super().truncate(fd, size)

    def sync_data(self, fd: int) -> None:
        self._begin("sync_data")
        super().sync_data(fd)

    def rename(self, old: str, new: str, folder_fd: int) -> None:
        self._begin("rename")
        super().rename(old, new, folder_fd)

    def unlink(self, name: str, folder_fd: int) -> None:
        self._begin("unlink")
        super().unlink(name, folder_fd)


assert SLOT_BYTES == ALIGNMENT
