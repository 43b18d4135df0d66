import pytest

from kvtier import plugins
from kvtier.errors import InvalidSettings
from kvtier.evictor.table import Table, Use, victims

FOREVER = float("inf")


def written(*times: float) -> Table:
    table = Table()
    for number, time_s in enumerate(times):
        table.add(b"key-%d" % number, 1, time_s, time_s)
    return table


def test_victims_of_lru_follow_journals() -> None:
    table = written(1, 2, 3, 4)
    table.update_uses({b"key-0": Use(10, 1), b"key-2": Use(9, 5)})
    assert list(victims(table, "lru", FOREVER)) == [1, 3, 2, 0]


@pytest.mark.parametrize("policy", plugins.known("eviction"))
def test_victims_yield_each_cold_row_once_for_every_policy(policy: str) -> None:
    table = written(*range(50))
    table.update_uses({b"key-%d" % number: Use(100 + number, number) for number in range(0, 50, 3)})
    given = list(victims(table, policy, newest_s=60))
    assert sorted(given) == [number for number in range(50) if number % 3]


def test_victims_of_s3fifo_keep_rows_read_again() -> None:
    """LRU and S3-FIFO rank old rows that are read often differently from new unread rows."""
    table = written(*range(100))
    table.update_uses({b"key-%d" % number: Use(50.5, 9) for number in range(10)})
    lru = list(victims(table, "lru", FOREVER))[:60]
    s3fifo = list(victims(table, "s3fifo", FOREVER))[:60]
    assert set(range(10)) <= set(lru)
    assert not set(range(10)) & set(s3fifo)


def test_victims_reject_unknown_policy() -> None:
    with pytest.raises(InvalidSettings, match="no eviction called 'best'"):
        list(victims(written(1), "best", FOREVER))


def test_victims_keep_start_of_prefix_longest() -> None:
    """All rows have the time of the same journal; more journals name the first one."""
    table = written(1, 1, 1)
    table.update_uses({b"key-0": Use(9, 7), b"key-1": Use(9, 3), b"key-2": Use(9, 1)})
    assert list(victims(table, "lru", FOREVER)) == [2, 1, 0]
