"""The slot map: a slot is exactly one of free, being written, held and retired."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvtier.tiers.disk import slots as slots_module
from kvtier.tiers.disk.log import Put
from kvtier.tiers.disk.slots import SlotMap
from tests.tiers.disk.slabs import key


def puts(slots: SlotMap) -> list[Put]:
    """Return the records of all blocks held, oldest first."""
    return [
        Put(slot, key, slots.parents([slot])[0], bytes(slots.checksum(slot)))
        for key, slot in slots.slot_of.items()
    ]


def put(slot: int, number: int, parent: int | None = None) -> Put:
    return Put(slot, key(number), None if parent is None else key(parent), bytes([number]) * 16)


def test_take_returns_slots_ascending_and_reused_first() -> None:
    slots = SlotMap(8)
    assert slots.take(3) == [0, 1, 2]
    slots.release([0, 2])
    assert slots.take(3) == [0, 2, 3]
    assert slots.take(9) == [4, 5, 6, 7]
    assert slots.take(1) == []
    slots.release([5, 3, 4])
    assert slots.take(2) == [3, 4]
    assert slots.free_count == 1


def test_parent_shares_object_of_its_key() -> None:
    slots = SlotMap(4)
    slots.publish(put(0, 1))
    slots.publish(put(1, 2, parent=1))
    first, second = slots.page(0).blocks
    assert second.parent is first.key


def test_replay_prefers_newer_record() -> None:
    slots = SlotMap(6)
    slots.replay(put(3, 1))
    slots.replay(put(3, 2))  # the slot has a new owner
    slots.replay(put(4, 2))  # the key is in another slot now
    slots.replay(put(1, 5))
    slots.empty(1)
    slots.empty(1)
    slots.rebuild_free()
    assert [row.slot for row in puts(slots)] == [4]
    assert sorted(slots.take(6)) == [0, 1, 2, 3, 5]


def test_pages_are_in_order_of_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots_module, "SCAN_BLOCKS", 4)
    slots = SlotMap(20)
    order = [9, 3, 12, 0, 7, 19, 5, 1, 2, 18]
    for slot in order:
        slots.publish(put(slot, slot))
    seen = []
    page = slots.page(0)
    while True:
        seen += [int(stored.key[:32]) for stored in page.blocks]
        if page.cursor is None:
            break
        slots.remove(key(12))  # already seen
        slots.remove(key(2))  # still to come
        page = slots.page(page.cursor)
    assert seen == [9, 3, 12, 0, 7, 19, 5, 1, 18]


class Life(RuleBasedStateMachine):
    """Compare the slot map with a model of four sets."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = SlotMap(6)
        self.writing: list[int] = []
        self.held: dict[int, int] = {}
        self.reading: list[int] = []
        self.retired: list[int] = []
        self.number = 0

    @rule(count=st.integers(0, 7))
    def take(self, count: int) -> None:
        taken = self.slots.take(count)
        assert not set(taken) & {*self.writing, *self.held, *self.retired}
        self.writing += taken

    @precondition(lambda self: self.writing)
    @rule(data=st.data())
    def publish_or_release(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(self.writing))
        self.writing.remove(slot)
        if data.draw(st.booleans()):
            self.number += 1
            self.slots.publish(put(slot, self.number % 256))
            self.held[slot] = self.number % 256
        else:
            self.slots.release([slot])

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def begin_read(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.held)))
        self.slots.begin_read(slot)
        self.reading.append(slot)

    @precondition(lambda self: self.reading)
    @rule(data=st.data())
    def end_read(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(self.reading))
        self.slots.end_reads([slot])
        self.reading.remove(slot)
        if slot in self.retired and slot not in self.reading:
            self.retired.remove(slot)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.held)))
        number = self.held.pop(slot)
        assert self.slots.remove(key(number)) == slot
        self.slots.retire([slot])
        if slot in self.reading:
            self.retired.append(slot)

    @invariant()
    def slots_are_conserved(self) -> None:
        used = len(self.writing) + len(self.held) + len(self.retired)
        assert self.slots.free_count + used == 6
        assert len(self.slots) == len(self.held)
        assert {row.slot: int(row.key[:32]) for row in puts(self.slots)} == self.held
        assert all(row.checksum == bytes([row.checksum[0]]) * 16 for row in puts(self.slots))


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
