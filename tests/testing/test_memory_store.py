"""The plainest store keeps its own contract, and can be spoiled behind its back."""

import numpy as np
import pytest

from kvtier.clock import VirtualClock
from kvtier.testing.memory_store import MemoryStore
from kvtier.tiers.shared.store import Store


def part(data: bytes) -> np.ndarray:  # type: ignore[type-arg]
    return np.frombuffer(data, np.uint8)


def test_it_is_a_store() -> None:
    assert isinstance(MemoryStore(), Store)


def test_the_first_writer_wins() -> None:
    store = MemoryStore()
    assert store.publish("a/b", [part(b"one"), part(b"two")])
    assert not store.publish("a/b", [part(b"three")])
    assert bytes(store.raw("a/b")) == b"onetwo"


def test_reads_fill_buffers_until_the_file_ends() -> None:
    store = MemoryStore()
    store.put("a", b"0123456789")
    one, two = np.zeros(4, np.uint8), np.zeros(8, np.uint8)
    read = store.read("a", 3, [one, two])
    assert read is not None
    assert (read.filled_bytes, read.stat) == (7, store.stat("a"))
    assert bytes(one) + bytes(two) == b"3456789" + bytes(5)
    behind = store.read("a", 11, [one])
    assert behind is not None
    assert behind.filled_bytes == 0
    assert store.read("b", 0, [one]) is None


def test_files_have_the_time_of_the_store_and_versions_of_their_own() -> None:
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


def test_what_is_not_there_is_said() -> None:
    store = MemoryStore()
    assert not store.move("a", "b")
    assert not store.remove("a")
    store.put("a", b"")
    assert store.remove("a")
    assert store.stat("a") is None


def test_a_move_replaces() -> None:
    store = MemoryStore()
    store.put("a", b"new")
    store.put("b", b"old")
    assert store.move("a", "b")
    assert bytes(store.raw("b")) == b"new"


def test_listings_go_on_where_they_stopped() -> None:
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


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "../a", ".a", "a/.b", "a b", "a\n"])
def test_other_names_are_refused(name: str) -> None:
    store = MemoryStore()
    for verb in (store.stat, store.remove):
        with pytest.raises(ValueError, match="names no file"):
            verb(name)
    with pytest.raises(ValueError, match="names no file"):
        store.put(name, b"")
    with pytest.raises(ValueError, match="names no file"):
        store.move("a", name)
