"""Free slots: never handed out twice, released ones reused first."""

from hypothesis import given
from hypothesis import strategies as st

from kvtier.memory.free_slots import FreeSlots


def test_released_slots_are_reused_before_fresh_ones() -> None:
    free = FreeSlots(6)
    assert free.take(3) == [0, 1, 2]
    free.release([2, 0])
    assert len(free) == 5
    assert free.take(1) == [0]
    assert free.take(3) == [2, 3, 4]
    assert free.take(9) == [5]
    assert free.take(1) == []


def test_take_all_takes_nothing_if_too_few_are_free() -> None:
    free = FreeSlots(3)
    assert free.take_all(4) is None
    assert free.take_all(0) == []
    assert free.take_all(3) == [0, 1, 2]
    free.release([1])
    assert free.take_all(2) is None
    assert free.take_all(1) == [1]


def test_rebuild_sets_which_slots_are_free() -> None:
    free = FreeSlots(5)
    free.take(5)
    free.rebuild(3, [1])
    assert len(free) == 3
    assert free.take(3) == [1, 3, 4]


@given(st.lists(st.integers(0, 8)))
def test_every_slot_is_free_or_taken_exactly_once(counts: list[int]) -> None:
    free = FreeSlots(10)
    taken: list[int] = []
    for count in counts:
        if count % 2 and taken:
            free.release(taken[:count])
            del taken[:count]
        else:
            taken += free.take(count)
        assert len(set(taken)) == len(taken)
        assert len(taken) + len(free) == 10
