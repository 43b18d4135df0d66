import pytest

from kvtier.eviction.base import EvictionPolicy
from kvtier.eviction.sieve import PLUGIN, Sieve
from kvtier.testing.eviction import EvictionContract, numbered_key


class TestSieveContract(EvictionContract):
    keeps_insertion_order = False
    resists_scans = True

    def make_policy(self, capacity_rows: int | None = None) -> EvictionPolicy:
        return Sieve(capacity_rows=capacity_rows)

    @pytest.mark.slow
    def test_memory_is_at_most_sixteen_bytes_a_row(self) -> None:
        super().test_memory_is_at_most_sixteen_bytes_a_row()


def test_plugin_needs_no_arguments() -> None:
    assert PLUGIN is Sieve
    assert len(PLUGIN()) == 0


def test_sieve_spares_visited_row_once() -> None:
    sieve = Sieve()
    for row in range(4):
        sieve.insert(row, numbered_key(row))
    sieve.access(0)
    sieve.access(2)
    assert [sieve.victim(lambda _row: True) for _ in range(4)] == [1, 3, 0, 2]


def test_sieve_hand_moves_on_when_its_row_is_removed() -> None:
    sieve = Sieve()
    for row in range(4):
        sieve.insert(row, numbered_key(row))
    assert sieve.victim(lambda _row: True) == 0
    sieve.remove(1)
    assert [sieve.victim(lambda _row: True) for _ in range(2)] == [2, 3]


def test_sieve_reused_row_is_not_visited() -> None:
    sieve = Sieve()
    sieve.insert(0, numbered_key(0))
    sieve.access(0)
    sieve.remove(0)
    sieve.insert(0, numbered_key(1))
    sieve.insert(1, numbered_key(2))
    assert sieve.victim(lambda _row: True) == 0
