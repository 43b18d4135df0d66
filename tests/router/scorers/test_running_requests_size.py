from kvtier.router.scorers.running_requests_size import PLUGIN
from tests.router.cases import candidate, made, request


def test_the_fewest_running_requests_are_one() -> None:
    running = [candidate("a", running=1), candidate("b", running=5), candidate("c", running=2)]
    # most 5, least 1: 4/4, 0/4, 3/4
    assert made(PLUGIN).score(request(), running) == [1.0, 0.0, 0.75]


def test_equal_counts_are_all_one() -> None:
    running = [candidate("a", running=3), candidate("b", running=3)]
    assert made(PLUGIN).score(request(), running) == [1.0, 1.0]


def test_a_single_one_is_one_and_nobody_is_none() -> None:
    assert made(PLUGIN).score(request(), [candidate("a", running=9)]) == [1.0]
    assert made(PLUGIN).score(request(), []) == []
