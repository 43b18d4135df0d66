"""The store in RAM: its contract, and access to its bytes."""

from pathlib import Path

import numpy as np
import pytest

from kvtier.clock import VirtualClock
from kvtier.testing.memory_store import MemoryStore
from kvtier.testing.stores import StoreContract
from kvtier.tiers.base import Buffer
from kvtier.tiers.shared.store import Store


class TestMemoryStoreContract(StoreContract):
    @pytest.fixture(autouse=True)
    def no_stores(self) -> None:
        self.stores: dict[Path, MemoryStore] = {}

    def make_store(self, folder: Path) -> Store:
        return self.stores.setdefault(folder, MemoryStore())


def part(data: bytes) -> Buffer:
    return np.frombuffer(data, np.uint8)


def test_publish_keeps_the_first_file() -> None:
    store = MemoryStore()
    assert store.publish("a/b", [part(b"one"), part(b"two")])
    assert not store.publish("a/b", [part(b"three")])
    assert bytes(store.raw("a/b")) == b"onetwo"


def test_read_fills_buffers_until_the_file_ends() -> None:
    store = MemoryStore()
    store.put("a", b"0123456789")
    one, two = np.zeros(4, np.uint8), np.zeros(8, np.uint8)
    read = store.read("a", 3, [one, two])
    assert read is not None
    assert (read.filled_bytes, read.stat) == (7, store.stat("a"))
    assert bytes(one) + bytes(two) == b"3456789" + bytes(5)
    past_end = store.read("a", 11, [one])
    assert past_end is not None
    assert past_end.filled_bytes == 0
    assert store.read("b", 0, [one]) is None


def test_put_sets_time_and_version() -> None:
    clock = VirtualClock(100.0)
    store = MemoryStore(clock)
    first = store.put("a", b"1")
    clock.advance(5)
    second = store.put("a", b"1")
    assert (first.modified_s, second.modified_s) == (100.0, 105.0)
    assert first.version != second.version
    clock.advance(5)
    assert store.move("a", "b")
    assert store.stat("a") is None
    assert store.stat("b") == second


def test_move_and_remove_of_missing_file_are_false() -> None:
    store = MemoryStore()
    assert not store.move("a", "b")
    assert not store.remove("a")
    store.put("a", b"")
    assert store.remove("a")
    assert store.stat("a") is None


def test_move_replaces_the_destination() -> None:
    store = MemoryStore()
    store.put("a", b"new")
    store.put("b", b"old")
    assert store.move("a", "b")
    assert bytes(store.raw("b")) == b"new"


def test_list_continues_after_the_last_name() -> None:
    store = MemoryStore()
    for name in ("x/b", "x/a/c", "x-y", "xx/a", "x/a.d", "z"):
        store.put(name, b"1")
    whole = store.list("x")
    assert [entry.name for entry in whole.entries] == ["x/a.d", "x/a/c", "x/b"]
    assert whole.after is None
    page = store.list("x", limit=2)
    assert page.after == "x/a/c"
    rest = store.list("x", after=page.after, limit=2)
    assert [entry.name for entry in rest.entries] == ["x/b"]
    assert rest.after is None
    assert len(store.list("").entries) == 6


def test_raw_bytes_can_be_changed_behind_the_store() -> None:
    store = MemoryStore()
    store.put("a", b"\0\0")
    store.raw("a")[1] ^= 1
    buffer = np.zeros(2, np.uint8)
    store.read("a", 0, [buffer])
    assert buffer.tolist() == [0, 1]
    with pytest.raises(KeyError):
        store.raw("b")
