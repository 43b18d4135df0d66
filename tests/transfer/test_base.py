from kvtier.transfer.base import Direction, Transfer


def test_transfers_are_told_apart_by_identity() -> None:
    """Two batches of the same blocks are two: each has its own completions."""
    one, other = (Transfer(1, Direction.DELETE, [0], []) for _ in range(2))
    assert one != other
    assert len({one, other}) == 2
