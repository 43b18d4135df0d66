import pytest

from kvtier.router.scorers.load_aware import PLUGIN
from tests.router.cases import candidate, made, request


@pytest.mark.parametrize(
    ("waiting", "score"), [(0, 0.5), (32, 0.375), (64, 0.25), (128, 0.0), (500, 0.0)]
)
def test_score_falls_from_one_half_to_zero_at_the_threshold(waiting: int, score: float) -> None:
    assert made(PLUGIN).score(request(), [candidate(waiting=waiting)]) == [score]


def test_threshold_is_configurable() -> None:
    # The score is 0.5 * (1 - 3/4).
    assert made(PLUGIN, threshold=4).score(request(), [candidate(waiting=3)]) == [0.125]
    with pytest.raises(ValueError, match="threshold is 0"):
        PLUGIN.Parameters(threshold=0)


def test_score_is_absolute() -> None:
    queues = [candidate("a", waiting=64), candidate("b", waiting=64), candidate("c", waiting=0)]
    assert made(PLUGIN).score(request(), queues) == [0.25, 0.25, 0.5]
    assert made(PLUGIN).score(request(), []) == []
