from kvtier.transfer.base import Direction, Transfer


def test_transfers_compare_by_identity() -> None:
    """Two transfers of the same blocks differ, because each has its own completions."""
    one, other = (Transfer(1, Direction.DELETE, [0], []) for _ in range(2))
    assert one != other
    assert len({one, other}) == 2
