"""The tests of the store's contract suite with concurrent callers. No test depends on time.

They are in a module of their own for its length; `stores.StoreContract` inherits them and is the
class to subclass. Two stores in one place stand for two hosts.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from kvtier.blocks.layout import ALIGNMENT
from kvtier.clock import seeded
from kvtier.testing.samples import blank, content
from kvtier.tiers.shared.store import ListEntry, Store

UNIFORM_BYTES = 64 * ALIGNMENT
"""The length of the files that consist of one repeated byte."""


class StoreRaces(ABC):
    """The tests with concurrent callers, and the helpers that all tests of stores use."""

    @abstractmethod
    def make_store(self, folder: Path) -> Store:
        """Return a store of its own for `folder`; for a folder used before, with the same files."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        """An empty store, closed at the end of the test."""
        store = self.make_store(tmp_path)
        yield store
        store.close()

    def bytes_of(self, store: Store, name: str) -> bytes | None:
        """Return all bytes of a file; None where there is none."""
        stat = store.stat(name)
        if stat is None:
            return None
        buffer = blank(stat.size + ALIGNMENT)
        read = store.read(name, 0, [buffer])
        return None if read is None else bytes(buffer[: read.filled_bytes])

    def listed(
        self, store: Store, folder: str, limit: int = 1000, after: str = ""
    ) -> list[ListEntry]:
        """Return the entries of all pages of a listing."""
        entries: list[ListEntry] = []
        while True:
            page = store.list(folder, after, limit)
            assert len(page.entries) <= limit
            entries += page.entries
            if page.after is None:
                return entries
            assert page.after > after, "a page does not advance the listing"
            after = page.after

    def names(self, store: Store, folder: str, limit: int = 1000, after: str = "") -> list[str]:
        """Return the names of all pages of a listing."""
        return [entry.name for entry in self.listed(store, folder, limit, after)]

    def is_whole(self, store: Store, name: str, size: int, marks: set[int]) -> bool:
        """Return whether the file exists; if so, assert that it is one of `marks` repeated."""
        buffer = blank(size + ALIGNMENT)
        read = store.read(name, 0, [buffer])
        if read is None:
            return False
        assert read.filled_bytes == read.stat.size == size
        assert set(np.unique(buffer[:size]).tolist()) <= marks
        assert len(np.unique(buffer[:size])) == 1
        return True

    def test_publish_of_one_name_by_many_succeeds_once(self, tmp_path: Path) -> None:
        """Of eight threads on two stores, one gets True, and its bytes are in the file."""
        stores = [self.make_store(tmp_path) for _ in range(2)]
        barrier = threading.Barrier(8)

        def publish(round_number: int, writer: int) -> bool:
            part = content(8 * round_number + writer, 4 * ALIGNMENT)
            barrier.wait()
            return stores[writer % 2].publish(f"new-{round_number}/file", [part])

        with ThreadPoolExecutor(8) as threads:
            for number in range(12):
                won = list(threads.map(publish, [number] * 8, range(8)))
                assert won.count(True) == 1
                winner = content(8 * number + won.index(True), 4 * ALIGNMENT)
                assert self.bytes_of(stores[0], f"new-{number}/file") == bytes(winner)
                assert self.names(stores[1], f"new-{number}") == [f"new-{number}/file"]
        for store in stores:
            store.close()

    def test_published_file_appears_as_a_whole(self, tmp_path: Path) -> None:
        """Concurrent reads, stats and listings see all of a file or nothing of it."""
        store, other = self.make_store(tmp_path), self.make_store(tmp_path)
        done = threading.Event()

        def watch() -> int:
            seen = 0
            while not done.is_set() or not seen:
                for number in range(8):
                    seen += self.is_whole(other, f"folder/{number}", UNIFORM_BYTES, {number})
                for entry in self.listed(other, ""):
                    assert entry.name.split("/")[1].isdecimal(), "a temporary file is listed"
                    assert entry.stat.size == UNIFORM_BYTES
            return seen

        with ThreadPoolExecutor(2) as threads:
            watchers = [threads.submit(watch) for _ in range(2)]
            try:
                for number in range(8):
                    part = np.full(UNIFORM_BYTES // 2, number, np.uint8)
                    assert store.publish(f"folder/{number}", [part, part])
            finally:
                done.set()
            assert all(watcher.result() for watcher in watchers)
        store.close()
        other.close()

    def test_put_replaces_a_file_as_a_whole(self, tmp_path: Path) -> None:
        """Concurrent readers see the old or the new file, never neither or a mix."""
        store, other = self.make_store(tmp_path), self.make_store(tmp_path)
        store.put("file", bytes(10_000))
        done = threading.Event()

        def watch() -> int:
            seen = 0
            while not done.is_set() or not seen:
                assert self.is_whole(other, "file", 10_000, set(range(40)))
                seen += 1
            return seen

        with ThreadPoolExecutor(2) as threads:
            watchers = [threads.submit(watch) for _ in range(2)]
            try:
                for number in range(40):
                    store.put("file", bytes([number]) * 10_000)
            finally:
                done.set()
            assert all(watcher.result() for watcher in watchers)
        store.close()
        other.close()

    def test_concurrent_operations_never_show_wrong_bytes(self, tmp_path: Path) -> None:
        """Six threads do every operation on the same few names; what is read is always whole."""
        stores = [self.make_store(tmp_path) for _ in range(2)]
        with ThreadPoolExecutor(6) as threads:
            found = sum(threads.map(lambda seed: self._rummage(stores[seed % 2], seed), range(6)))
        assert found > 0
        for name in self.names(stores[0], ""):
            assert self.is_whole(stores[0], name, UNIFORM_BYTES, set(range(6)))
            assert stores[1].remove(name)
        for store in stores:
            store.close()

    def _rummage(self, store: Store, seed: int) -> int:
        rng = seeded(seed)
        mine = np.full(UNIFORM_BYTES, seed, np.uint8)
        found = 0
        for _ in range(60):
            name, other = (f"{rng.randrange(3)}/{rng.randrange(3)}" for _ in range(2))
            verb = rng.choice(["read", "read", "publish", "put", "remove", "move", "list"])
            if verb == "read":
                found += self.is_whole(store, name, UNIFORM_BYTES, set(range(6)))
            elif verb == "publish":
                store.publish(name, [mine])
            elif verb == "put":
                store.put(name, bytes(mine))
            elif verb == "remove":
                store.remove(name)
            elif verb == "move":
                store.move(name, other)
            else:
                entries = self.listed(store, "", 2)
                assert {entry.stat.size for entry in entries} <= {UNIFORM_BYTES}
        return found
