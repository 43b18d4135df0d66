import pytest

from kvtier.eviction.rows import Links, RowList


def test_lists_sharing_links_stay_separate_while_growing() -> None:
    links = Links()
    even, odd = RowList(links, -1), RowList(links, -2)
    for row in range(5_000):
        (odd if row % 2 else even).push(row)
    assert list(even) == list(range(0, 5_000, 2))
    assert list(odd) == list(range(1, 5_000, 2))
    assert (even.size, odd.size) == (2_500, 2_500)


def test_growth_for_distant_row_keeps_others() -> None:
    links = Links()
    rows = RowList(links)
    rows.push(3)
    rows.push(links.row_cells - 1)
    rows.push(1_000_000)
    assert list(rows)[0::2] == [3, 1_000_000]
    assert links.holds(1_000_000)
    assert not links.holds(999_999)
    assert not links.holds(links.row_cells)
    assert not links.holds(-1)


def test_heat_moves_to_hot_end_and_unlink_removes() -> None:
    rows = RowList(Links())
    for row in range(5):
        rows.push(row)
    rows.heat(0)
    rows.heat(0)
    rows.heat(2)
    assert list(rows) == [1, 3, 4, 0, 2]
    rows.unlink(4)
    rows.unlink(2)
    rows.unlink(1)
    assert list(rows) == [3, 0]


@pytest.mark.parametrize("verb", ["unlink", "heat"])
def test_unlink_and_heat_of_absent_row_fail_an_assertion(verb: str) -> None:
    rows = RowList(Links())
    rows.push(1)
    with pytest.raises(AssertionError):
        getattr(rows, verb)(2)


def test_push_of_held_row_fails_an_assertion() -> None:
    rows = RowList(Links())
    rows.push(1)
    with pytest.raises(AssertionError):
        rows.push(1)


def test_hand_follows_when_its_row_moves_or_is_removed() -> None:
    """A walk resumes beside its last result, but never at a row that was heated since."""
    rows = RowList(Links())
    for row in range(100):
        rows.push(row)
    assert rows.first_cold(lambda row: row >= 50) == 50
    rows.unlink(50)
    rows.heat(49)
    rows.unlink(48)
    assert rows.first_cold(lambda row: row == 47 or row > 60) == 47
    rows.unlink(47)
    assert rows.first_cold(lambda row: row == 49 or row > 60) == 61


def test_first_cold_finds_newly_acceptable_row_within_bound() -> None:
    rows = RowList(Links())
    for row in range(1_000):
        rows.push(row)
    found = []
    for _ in range(100):
        row = rows.first_cold(lambda row: row == 0 or row >= 500)
        assert row is not None
        rows.unlink(row)
        found.append(row)
        if row == 0:
            break
        rows.heat(1)
    assert found[-1] == 0


def test_first_cold_returns_none_only_without_acceptable_row() -> None:
    rows = RowList(Links())
    for row in range(100):
        rows.push(row)
    assert rows.first_cold(lambda row: row == 60) == 60
    rows.unlink(60)
    assert rows.first_cold(lambda row: row == 0) == 0
    assert rows.first_cold(lambda _row: False) is None


def test_first_cold_does_not_resume_at_heated_row() -> None:
    rows = RowList(Links())
    for row in range(100):
        rows.push(row)
    assert rows.first_cold(lambda row: row >= 50) == 50
    rows.unlink(50)
    rows.heat(49)
    assert rows.first_cold(lambda row: row == 49 or row > 60) == 61
