"""Reading the summaries of evictors."""

import errno

import pytest

from kvtier.evictor.journals import encode_summary, summary_name
from kvtier.evictor.table import Use
from kvtier.inspection.hottest import Uses, folded_reads
from kvtier.inspection.store_view import StoreView
from kvtier.testing.memory_store import MemoryStore

SPACE = "m-0123456789abcdef"
ONE, OTHER = bytes([0x10, *range(9)]), bytes([0x1F, *range(9)])


def put(store: MemoryStore, shard: str, epoch: int, uses: Uses) -> None:
    store.put(summary_name(SPACE, shard, epoch), encode_summary(uses, 0))


def folded(store: MemoryStore) -> tuple[list[Uses], list[str]]:
    errors: list[str] = []
    view = StoreView(store, "memory")
    uses = list(folded_reads(view, SPACE, lambda name, error: errors.append(f"{name} {error}")))
    return uses, errors


def test_folded_reads_come_shard_by_shard() -> None:
    store = MemoryStore()
    put(store, "1", 3, {ONE: Use(10.0, 4), OTHER: Use(11.0, 5)})
    put(store, "f", 1, {b"\xf0abcdefg": Use(12.0, 6)})
    store.put(f"{SPACE}/access/host-1-00000001.log", b"")
    uses, errors = folded(store)
    assert [each for each in uses if each] == [
        {ONE: Use(10.0, 4), OTHER: Use(11.0, 5)},
        {b"\xf0abcdefg": Use(12.0, 6)},
    ]
    assert errors == []


def test_later_summary_entry_wins() -> None:
    store = MemoryStore()
    put(store, "1", 3, {ONE: Use(10.0, 4), OTHER: Use(20.0, 5)})
    put(store, "1", 4, {ONE: Use(12.0, 7), OTHER: Use(11.0, 6)})
    assert {ONE: Use(12.0, 7), OTHER: Use(20.0, 5)} in folded(store)[0]


def test_damaged_summary_is_reported_and_hides_no_other() -> None:
    store = MemoryStore()
    put(store, "1", 3, {ONE: Use(10.0, 4)})
    store.put(summary_name(SPACE, "1", 4), b"?")
    uses, (error,) = folded(store)
    assert {ONE: Use(10.0, 4)} in uses
    assert summary_name(SPACE, "1", 4) in error
    assert "damaged" in error


def test_summary_replaced_while_reading_is_found() -> None:
    class Folding(MemoryStore):
        def stat(self, name: str):
            if name == summary_name(SPACE, "1", 3) and self.remove(name):
                put(self, "1", 4, {ONE: Use(12.0, 5)})
            return super().stat(name)

    store = Folding()
    put(store, "1", 3, {ONE: Use(10.0, 4)})
    assert {ONE: Use(12.0, 5)} in folded(store)[0]


def test_unreadable_summary_is_reported_and_silence_raises() -> None:
    class Refusing(MemoryStore):
        number = errno.EACCES

        def stat(self, name: str):
            raise OSError(self.number, "no")

    store = Refusing()
    put(store, "1", 3, {ONE: Use(10.0, 4)})
    uses, (error,) = folded(store)
    assert not any(uses)
    assert "no" in error
    store.number = errno.ETIMEDOUT
    with pytest.raises(TimeoutError):
        folded(store)
