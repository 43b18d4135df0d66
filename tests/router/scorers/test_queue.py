import pytest

from kvtier.router.scorers.queue import PLUGIN
from tests.router.cases import candidate, made, request


def scores(*waiting: int) -> list[float]:
    candidates = [candidate(str(place), waiting=count) for place, count in enumerate(waiting)]
    return made(PLUGIN).score(request(), candidates)


def test_shortest_queue_scores_one_and_longest_scores_zero() -> None:
    # The longest is 10 and the shortest 2: (10-2)/8, (10-4)/8, (10-10)/8.
    assert scores(2, 4, 10) == [1.0, 0.75, 0.0]


@pytest.mark.parametrize("waiting", [(0, 0, 0), (7, 7), (3,)])
def test_equal_queues_score_one(waiting: tuple[int, ...]) -> None:
    assert scores(*waiting) == [1.0] * len(waiting)


def test_requests_sent_since_the_last_scrape_count_as_waiting() -> None:
    # a: 5 in flight, 2 of them running, so 3 wait. b reports 1 waiting, and 1 in flight runs.
    one = candidate("a", in_flight=5, running=2)
    other = candidate("b", waiting=1, in_flight=1, running=1)
    third = candidate("c", waiting=2, running=9)
    assert made(PLUGIN).score(request(), [one, other, third]) == [0.0, 1.0, 0.5]


def test_no_candidates_have_no_scores() -> None:
    assert scores() == []
