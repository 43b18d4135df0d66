import pytest

from kvtier.router.scorers.active_request import PLUGIN
from tests.router.cases import candidate, made, request


def scores(*in_flight: int, **parameters: float) -> list[float]:
    candidates = [candidate(str(place), in_flight=one) for place, one in enumerate(in_flight)]
    return made(PLUGIN, **parameters).score(request(), candidates)


def test_idle_scores_one_and_busiest_scores_zero() -> None:
    # The maximum is 4: 1 if idle, (4-1)/4, (4-4)/4.
    assert scores(0, 1, 4) == [1.0, 0.75, 0.0]


def test_max_busy_score_separates_idle_from_busy() -> None:
    # Up to 1 request is idle; (4-2)/4 * 0.5.
    assert scores(0, 1, 2, 4, idle_threshold=1, max_busy_score=0.5) == [1.0, 1.0, 0.25, 0.0]


def test_all_idle_and_no_candidates() -> None:
    assert scores(0, 0) == [1.0, 1.0]
    assert scores() == []


def test_parameters_out_of_range_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"maxBusyScore is 1\.5"):
        PLUGIN.Parameters(max_busy_score=1.5)
    with pytest.raises(ValueError, match="idleThreshold is -1"):
        PLUGIN.Parameters(idle_threshold=-1)


def test_equally_busy_candidates_score_zero() -> None:
    # The maximum is 3: (3-3)/3.
    assert scores(3, 3) == [0.0, 0.0]
    assert scores(5) == [0.0]
    assert scores(5, idle_threshold=5) == [1.0]
    # Up to 2 requests are idle; (8-4)/8 * 0.8, (8-8)/8 * 0.8.
    assert scores(2, 4, 8, idle_threshold=2, max_busy_score=0.8) == [1.0, pytest.approx(0.4), 0.0]
