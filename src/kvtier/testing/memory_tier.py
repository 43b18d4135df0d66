"""A tier in RAM: the plainest correct `Tier`, for tests and simulation.

Why: unit tests use no mocks of our own classes; they use this. It keeps a copy of each buffer
and verifies nothing, so bytes changed behind its back are served: what wrappers are tested with.
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
    """A `Tier` and `SharedTier`. Safe from any thread: one lock, held for the copies too.

    Nothing persists.
    """

    def __init__(
        self,
        capacity_blocks: int = 1 << 30,
        *,
        name: str = "memory",
        io_threads: int = 4,
        shared: bool = False,
    ) -> None:
        """`shared`: it is one of the places that others write to, too (see Capabilities)."""
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
        """Blocks held."""
        return len(self._held)

    def contains(self, keys: Sequence[BlockKey]) -> list[bool]:
        """Same order as `keys`."""
        with self._lock:
            return [key in self._held for key in keys]

    def find(self, chain: Sequence[BlockKey]) -> list[Outcome]:
        """DONE or MISSING."""
        return [Outcome.DONE if held else Outcome.MISSING for held in self.contains(chain)]

    def read_into(self, moves: Sequence[BlockMove]) -> list[Outcome]:
        """DONE or MISSING; FAILED once closed."""
        with self._lock:
            return [self._read(move) for move in moves]

    def write_from(
        self, moves: Sequence[BlockMove], parents: Sequence[BlockKey | None]
    ) -> list[Outcome]:
        """DONE, or FAILED when full or closed."""
        with self._lock:
            return [self._write(*each) for each in zip(moves, parents, strict=True)]

    def delete(self, keys: Sequence[BlockKey]) -> list[Outcome]:
        """DONE or MISSING."""
        with self._lock:
            return [
                Outcome.MISSING if self._held.pop(key, None) is None else Outcome.DONE
                for key in keys
            ]

    def scan(self, cursor: int | None = None) -> ScanPage:
        """Pages of 256 blocks in order of arrival. O(blocks held) a page."""
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
        """Forget everything."""
        with self._lock:
            self._held.clear()
            self._closed = True

    def raw(self, key: BlockKey) -> Buffer:
        """The stored bytes themselves, to look at or to spoil. Raises KeyError if not held."""
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
