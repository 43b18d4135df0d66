"""What the parts of the store's suite share: the hook, whole files, whole listings."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from kvtier.blocks.layout import ALIGNMENT
from kvtier.clock import seeded
from kvtier.testing.tiers import aligned
from kvtier.tiers.base import Buffer
from kvtier.tiers.shared.store import Listed, Store

GUARD = 0xEE
"""Fills memory in which nothing was read yet."""
UNIFORM_BYTES = 64 * ALIGNMENT
"""Length of the files that are one byte value from end to end."""


def content(seed: int, size: int) -> Buffer:
    """`size` bytes that are a function of `seed`, at an address that direct I/O takes."""
    return aligned(np.frombuffer(seeded(seed).randbytes(size), np.uint8))


def blank(size: int) -> Buffer:
    """Memory to read into, with nothing of use in it, at such an address."""
    return aligned(np.full(size, GUARD, np.uint8))


def joined(parts: Sequence[Buffer]) -> bytes:
    """The bytes of a file of these parts."""
    return b"".join(bytes(part) for part in parts)


class StoreSuite(ABC):
    """Implement `make_store`; the tests are in the subclasses."""

    @abstractmethod
    def make_store(self, folder: Path) -> Store:
        """A store of its own for `folder`; with one used before: the same files again."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        """An empty store, closed at the end."""
        store = self.make_store(tmp_path)
        yield store
        store.close()

    def bytes_of(self, store: Store, name: str) -> bytes | None:
        """All of a file, None where there is none."""
        stat = store.stat(name)
        if stat is None:
            return None
        buffer = blank(stat.size + ALIGNMENT)
        read = store.read(name, 0, [buffer])
        return None if read is None else bytes(buffer[: read.filled_bytes])

    def listed(self, store: Store, folder: str, limit: int = 1000, after: str = "") -> list[Listed]:
        """All pages of a listing."""
        entries: list[Listed] = []
        while True:
            page = store.list(folder, after, limit)
            assert len(page.entries) <= limit
            entries += page.entries
            if page.after is None:
                return entries
            assert page.after > after, "a listing goes forward"
            after = page.after

    def names(self, store: Store, folder: str, limit: int = 1000, after: str = "") -> list[str]:
        """Names of all pages of a listing."""
        return [entry.name for entry in self.listed(store, folder, limit, after)]

    def is_whole(self, store: Store, name: str, size: int, marks: set[int]) -> bool:
        """Whether the file is there, and if so, is one mark from end to end."""
        buffer = blank(size + ALIGNMENT)
        read = store.read(name, 0, [buffer])
        if read is None:
            return False
        assert read.filled_bytes == read.stat.size == size
        assert set(np.unique(buffer[:size]).tolist()) <= marks
        assert len(np.unique(buffer[:size])) == 1
        return True
