from kvtier.router.scorers.running_requests_size import PLUGIN
from tests.router.cases import candidate, made, request


def test_fewest_running_requests_score_one() -> None:
    running = [candidate("a", running=1), candidate("b", running=5), candidate("c", running=2)]
    # The most is 5 and the least 1: 4/4, 0/4, 3/4.
    assert made(PLUGIN).score(request(), running) == [1.0, 0.0, 0.75]


def test_equal_counts_score_one() -> None:
    running = [candidate("a", running=3), candidate("b", running=3)]
    assert made(PLUGIN).score(request(), running) == [1.0, 1.0]


def test_single_candidate_scores_one() -> None:
    assert made(PLUGIN).score(request(), [candidate("a", running=9)]) == [1.0]
    assert made(PLUGIN).score(request(), []) == []
