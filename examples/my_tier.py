"""A tier of your own: one class, tested by the contract suite that kvtier ships.

`FileTier` keeps each block in a file of its own, and its index in memory. It is correct and slow:
one lock serializes all calls. Test it with `.venv/bin/python -m pytest examples/my_tier.py`.
"""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kvtier.blocks.checksum import Xxh3
from kvtier.blocks.key import BlockKey
from kvtier.blocks.layout import BlockLayout
from kvtier.testing.tiers import TierContract
from kvtier.tiers.base import BlockMove, Capabilities, Outcome, ScanPage, StoredBlock, Tier


class FileTier:
    """A `Tier` of one file per block. It starts empty: its index does not survive the process."""

    def __init__(self, folder: Path, layout: BlockLayout, capacity_blocks: int) -> None:
        self.capabilities = Capabilities(
            name="files", capacity_blocks=capacity_blocks, persistent=False, io_threads=1
        )
        self._folder = folder
        self._block_bytes = layout.block_bytes
        self._checksum = Xxh3()
        self._lock = threading.Lock()
        self._held: dict[BlockKey, tuple[BlockKey | None, bytes]] = {}
        """Parent and checksum of each block, oldest first."""
        self._closed = False

    def contains(self, keys: Sequence[BlockKey]) -> list[bool]:
        """Return for each key whether the block is held."""
        with self._lock:
            return [key in self._held for key in keys]

    def read_into(self, moves: Sequence[BlockMove]) -> list[Outcome]:
        """Read and verify each block."""
        with self._lock:
            return [self._guarded(self._read, move) for move in moves]

    def write_from(
        self, moves: Sequence[BlockMove], parents: Sequence[BlockKey | None]
    ) -> list[Outcome]:
        """Write each block that is not held."""
        with self._lock:
            return [
                self._guarded(self._write, move, parent)
                for move, parent in zip(moves, parents, strict=True)
            ]

    def delete(self, keys: Sequence[BlockKey]) -> list[Outcome]:
        """Remove each block."""
        with self._lock:
            return [self._guarded(self._delete, key) for key in keys]

    def scan(self, cursor: int | None = None) -> ScanPage:
        """Return all blocks in one page."""
        with self._lock:
            return ScanPage([StoredBlock(key, held[0]) for key, held in self._held.items()], None)

    def close(self) -> None:
        """Refuse further calls."""
        with self._lock:
            self._closed = True
            self._held.clear()

    def _guarded(self, operation: Callable[..., Outcome], *arguments: Any) -> Outcome:
        """Return the outcome of an operation; an error of the file system is FAILED."""
        if self._closed:
            return Outcome.FAILED
        try:
            return operation(*arguments)
        except OSError:
            return Outcome.FAILED

    def _read(self, move: BlockMove) -> Outcome:
        if move.key not in self._held:
            return Outcome.MISSING
        payload = np.fromfile(self._path(move.key), np.uint8)
        if self._checksum.block(move.key, payload) != self._held[move.key][1]:
            self._delete(move.key)
            return Outcome.CORRUPT
        move.buffer[: self._block_bytes] = payload
        return Outcome.DONE

    def _write(self, move: BlockMove, parent: BlockKey | None) -> Outcome:
        if move.key in self._held:
            return Outcome.DONE
        if len(self._held) >= self.capabilities.capacity_blocks:
            return Outcome.FAILED
        payload = move.buffer[: self._block_bytes]
        payload.tofile(self._path(move.key))
        self._held[move.key] = (parent, self._checksum.block(move.key, payload))
        return Outcome.DONE

    def _delete(self, key: BlockKey) -> Outcome:
        if self._held.pop(key, None) is None:
            return Outcome.MISSING
        self._path(key).unlink(missing_ok=True)
        return Outcome.DONE

    def _path(self, key: BlockKey) -> Path:
        return self._folder / key.hex()


class TestFileTier(TierContract):
    """The contract suite for `FileTier`."""

    def make_tier(self, folder: Path, capacity_blocks: int) -> Tier:
        """Return a tier for the suite to test."""
        return FileTier(folder, self.layout, capacity_blocks)

    def corrupt(self, tier: Tier, folder: Path, block: BlockKey) -> None:
        """Flip one bit of a stored block."""
        file = folder / block.hex()
        content = bytearray(file.read_bytes())
        content[7] ^= 1
        file.write_bytes(content)
