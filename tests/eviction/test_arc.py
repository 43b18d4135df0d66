import pytest

from kvtier.eviction.arc import PLUGIN, Arc
from kvtier.eviction.base import EvictionPolicy
from kvtier.testing.eviction import EvictionContract, numbered_key


class TestArcContract(EvictionContract):
    resists_scans = True

    def make_policy(self, capacity_rows: int | None = None) -> EvictionPolicy:
        return Arc(capacity_rows=capacity_rows)

    @pytest.mark.slow
    def test_memory_is_at_most_sixteen_bytes_a_row(self) -> None:
        super().test_memory_is_at_most_sixteen_bytes_a_row()


def test_plugin_needs_no_arguments() -> None:
    assert PLUGIN is Arc
    assert len(PLUGIN()) == 0


def test_arc_ghost_hit_shifts_balance_to_rows_used_once() -> None:
    """After a ghost hit one row used once is kept longer than rows used again."""
    arc = Arc(capacity_rows=4)
    for row in range(4):
        arc.insert(row, numbered_key(row))
    assert arc.victim(lambda _row: True) == 0
    arc.insert(0, numbered_key(0))
    arc.access(0)
    assert [arc.victim(lambda _row: True) for _ in range(4)] == [1, 2, 0, 3]


def test_arc_ghosts_are_bounded_by_capacity() -> None:
    arc = Arc(capacity_rows=10)
    for number in range(1_000):
        if len(arc) == 10:
            row = arc.victim(lambda _row: True)
            assert row is not None
        else:
            row = len(arc)
        arc.insert(row, numbered_key(number * 7 % 23))
        if number % 3 == 0:
            arc.access(row)
        assert arc.ghosts <= 10
