import pytest

from kvtier.router.scorers.queue import PLUGIN
from tests.router.cases import candidate, made, request


def scores(*waiting: int) -> list[float]:
    candidates = [candidate(str(place), waiting=count) for place, count in enumerate(waiting)]
    return made(PLUGIN).score(request(), candidates)


def test_the_shortest_queue_is_one_and_the_longest_none() -> None:
    # longest 10, shortest 2: (10-2)/8, (10-4)/8, (10-10)/8
    assert scores(2, 4, 10) == [1.0, 0.75, 0.0]


@pytest.mark.parametrize("waiting", [(0, 0, 0), (7, 7), (3,)])
def test_equal_queues_are_all_one(waiting: tuple[int, ...]) -> None:
    assert scores(*waiting) == [1.0] * len(waiting)


def test_what_was_sent_since_the_engine_last_told_waits_too() -> None:
    # 5 sent from here, 2 of them run: 3 wait; the other says 1, and 1 of ours runs.
    one = candidate("a", in_flight=5, running=2)
    other = candidate("b", waiting=1, in_flight=1, running=1)
    third = candidate("c", waiting=2, running=9)
    assert made(PLUGIN).score(request(), [one, other, third]) == [0.0, 1.0, 0.5]


def test_nobody_is_no_scores() -> None:
    assert scores() == []
