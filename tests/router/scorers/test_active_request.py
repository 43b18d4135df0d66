import pytest

from kvtier.router.scorers.active_request import PLUGIN
from tests.router.cases import candidate, made, request


def scores(*in_flight: int, **parameters: float) -> list[float]:
    candidates = [candidate(str(place), in_flight=one) for place, one in enumerate(in_flight)]
    return made(PLUGIN, **parameters).score(request(), candidates)


def test_idle_is_one_and_the_busiest_none() -> None:
    # most 4: idle 1, (4-1)/4, (4-4)/4
    assert scores(0, 1, 4) == [1.0, 0.75, 0.0]


def test_a_busy_score_sets_idle_ones_apart() -> None:
    # up to 1 is idle; (4-2)/4 * 0.5
    assert scores(0, 1, 2, 4, idle_threshold=1, max_busy_score=0.5) == [1.0, 1.0, 0.25, 0.0]


def test_all_idle_and_nobody() -> None:
    assert scores(0, 0) == [1.0, 1.0]
    assert scores() == []


def test_scores_outside_of_zero_and_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"maxBusyScore is 1\.5"):
        PLUGIN.Parameters(max_busy_score=1.5)
    with pytest.raises(ValueError, match="idleThreshold is -1"):
        PLUGIN.Parameters(idle_threshold=-1)


def test_all_equally_busy_are_none_and_so_is_a_single_busy_one() -> None:
    # most 3: (3-3)/3
    assert scores(3, 3) == [0.0, 0.0]
    assert scores(5) == [0.0]
    assert scores(5, idle_threshold=5) == [1.0]
    # up to 2 is idle; (8-4)/8 * 0.8, (8-8)/8 * 0.8
    assert scores(2, 4, 8, idle_threshold=2, max_busy_score=0.8) == [1.0, pytest.approx(0.4), 0.0]
