"""Runs: neighboring slots of one segment, up to a limit."""

from hypothesis import given
from hypothesis import strategies as st

from kvtier.tiers.disk.slab import RUN_BLOCKS_MAX, split_runs


def cut(slots: list[int], segment_slots: int = 1000, limit: int = 1000) -> list[list[int]]:
    places = [(slot, i) for i, slot in enumerate(slots)]
    return [[slot for slot, _ in run] for run in split_runs(places, segment_slots, limit)]


def test_split_runs_at_gaps_segments_and_limits() -> None:
    assert cut([]) == []
    assert cut([1, 2, 3, 5, 6, 9]) == [[1, 2, 3], [5, 6], [9]]
    assert cut([2, 3, 4, 5], segment_slots=4) == [[2, 3], [4, 5]]
    assert cut([1, 2, 3, 4, 5], limit=2) == [[1, 2], [3, 4], [5]]
    assert cut([3, 3, 4]) == [[3], [3, 4]]
    assert [len(run) for run in cut(list(range(3000)), 10**6, 10**6)] == [
        RUN_BLOCKS_MAX,
        RUN_BLOCKS_MAX,
        3000 - 2 * RUN_BLOCKS_MAX,
    ]


@given(st.lists(st.integers(0, 60)), st.integers(1, 9), st.integers(1, 5))
def test_split_runs_keeps_every_place(slots: list[int], segment_slots: int, limit: int) -> None:
    slots.sort()
    cuts = cut(slots, segment_slots, limit)
    assert [slot for run in cuts for slot in run] == slots
    for run in cuts:
        assert run == list(range(run[0], run[0] + len(run)))
        assert run[0] // segment_slots == run[-1] // segment_slots
        assert len(run) <= limit
