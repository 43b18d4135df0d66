"""A tier in RAM: the simplest correct `Tier`, for tests and simulation.

Unit tests use it in place of mocks. It keeps a copy of each buffer and verifies nothing, so bytes
that a test changes are served; wrappers that verify are tested with that.

Invariants: never more than `capacity_blocks` blocks; blocks stay in order of arrival.
"""

import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kvtier.blocks.key import BlockKey
from kvtier.tiers.base import BlockMove, Buffer, Capabilities, Outcome, ScanPage, StoredBlock

_PAGE_BLOCKS = 256


class _Held(NamedTuple):
    arrival: int
    bytes: Buffer
    parent: BlockKey | None


class MemoryTier:
    """A `Tier` and `SharedTier` in RAM.

    Safe from any thread: one lock, held during the copies. Not persistent.
    """

    def __init__(
        self,
        capacity_blocks: int = 1 << 30,
        *,
        name: str = "memory",
        io_threads: int = 4,
        shared: bool = False,
    ) -> None:
        """`shared`: whether it declares that other processes write to it (see Capabilities)."""
        self.capabilities = Capabilities(
            name=name,
            capacity_blocks=capacity_blocks,
            persistent=False,
            io_threads=io_threads,
            shared=shared,
        )
        self._lock = threading.Lock()
        self._held: dict[BlockKey, _Held] = {}
        self._arrivals = 0
        self._closed = False

    def __len__(self) -> int:
        """Return the number of blocks held."""
        return len(self._held)

    def contains(self, keys: Sequence[BlockKey]) -> list[bool]:
        """Return for each key whether the block is held."""
        with self._lock:
            return [key in self._held for key in keys]

    def find(self, chain: Sequence[BlockKey]) -> list[Outcome]:
        """Return DONE for each block held, MISSING for the others."""
        return [Outcome.DONE if held else Outcome.MISSING for held in self.contains(chain)]

    def read_into(self, moves: Sequence[BlockMove]) -> list[Outcome]:
        """Copy the blocks into the buffers: DONE or MISSING; FAILED once closed."""
        with self._lock:
            return [self._read(move) for move in moves]

    def write_from(
        self, moves: Sequence[BlockMove], parents: Sequence[BlockKey | None]
    ) -> list[Outcome]:
        """Store copies of the buffers: DONE, or FAILED when full or closed."""
        with self._lock:
            return [self._write(*each) for each in zip(moves, parents, strict=True)]

    def delete(self, keys: Sequence[BlockKey]) -> list[Outcome]:
        """Remove blocks: DONE or MISSING."""
        with self._lock:
            return [
                Outcome.MISSING if self._held.pop(key, None) is None else Outcome.DONE
                for key in keys
            ]

    def scan(self, cursor: int | None = None) -> ScanPage:
        """Return a page of 256 blocks in order of arrival. Costs O(blocks held)."""
        with self._lock:
            later = [
                StoredBlock(key, held.parent)
                for key, held in self._held.items()
                if held.arrival > (cursor or 0)
            ]
            page = later[:_PAGE_BLOCKS]
            more = len(later) > len(page)
            return ScanPage(page, self._held[page[-1].key].arrival if more else None)

    def close(self) -> None:
        """Remove all blocks and refuse further use."""
        with self._lock:
            self._held.clear()
            self._closed = True

    def raw(self, key: BlockKey) -> Buffer:
        """Return the stored bytes themselves, to inspect or corrupt them. Raises KeyError."""
        with self._lock:
            return self._held[key].bytes

    def _read(self, move: BlockMove) -> Outcome:
        if self._closed:
            return Outcome.FAILED
        held = self._held.get(move.key)
        if held is None:
            return Outcome.MISSING
        np.copyto(move.buffer, held.bytes)
        return Outcome.DONE

    def _write(self, move: BlockMove, parent: BlockKey | None) -> Outcome:
        if move.key in self._held:
            return Outcome.DONE
        if self._closed or len(self._held) >= self.capabilities.capacity_blocks:
            return Outcome.FAILED
        self._arrivals += 1
        self._held[move.key] = _Held(self._arrivals, move.buffer.copy(), parent)
        return Outcome.DONE
