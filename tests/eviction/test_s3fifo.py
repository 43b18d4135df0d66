import pytest

from kvtier.eviction.base import EvictionPolicy
from kvtier.eviction.s3fifo import PLUGIN, S3Fifo
from kvtier.testing.eviction import EvictionContract, numbered_key


class TestS3FifoContract(EvictionContract):
    resists_scans = True

    def make_policy(self, capacity_rows: int | None = None) -> EvictionPolicy:
        return S3Fifo(capacity_rows=capacity_rows)

    @pytest.mark.slow
    def test_memory_is_at_most_sixteen_bytes_a_row(self) -> None:
        super().test_memory_is_at_most_sixteen_bytes_a_row()


def test_plugin_needs_no_arguments() -> None:
    assert PLUGIN is S3Fifo
    assert len(PLUGIN()) == 0


def test_s3fifo_rows_used_twice_survive_a_scan() -> None:
    policy = S3Fifo(capacity_rows=20)
    for row in range(20):
        policy.insert(row, numbered_key(row))
    for row in (3, 5):
        policy.access(row)
        policy.access(row)
    for number in range(100, 200):
        row = policy.victim(lambda _row: True)
        assert row not in (3, 5, None)
        policy.insert(row, numbered_key(number))


def test_s3fifo_ghost_enters_main_queue() -> None:
    policy = S3Fifo(capacity_rows=4)
    for row in range(4):
        policy.insert(row, numbered_key(row))
    assert policy.victim(lambda _row: True) == 0
    policy.insert(0, numbered_key(0))
    assert policy.victim(lambda _row: True) == 1
    policy.insert(1, numbered_key(50))
    assert [policy.victim(lambda _row: True) for _ in range(4)] == [2, 3, 1, 0]


def test_s3fifo_used_main_row_is_requeued() -> None:
    policy = S3Fifo(capacity_rows=4)
    for row in range(4):
        policy.insert(row, numbered_key(row))
    for row in (0, 1, 0, 1):
        policy.access(row)
    assert policy.victim(lambda _row: True) == 2
    policy.access(0)
    assert [policy.victim(lambda _row: True) for _ in range(3)] == [3, 1, 0]


def test_s3fifo_ghosts_are_bounded_by_resident_rows() -> None:
    policy = S3Fifo(capacity_rows=10)
    for number in range(500):
        row = policy.victim(lambda _row: True) if len(policy) == 10 else len(policy)
        assert row is not None
        policy.insert(row, numbered_key(number))
        assert policy.ghosts <= 10


def test_s3fifo_evicts_row_that_was_used_in_a_small_queue_below_its_share() -> None:
    """The row moves to the main queue during `victim`, and is found there."""
    policy = S3Fifo(capacity_rows=64)
    policy.insert(0, numbered_key(0))
    policy.access(0)
    policy.access(0)
    assert policy.victim(lambda _row: True) == 0
