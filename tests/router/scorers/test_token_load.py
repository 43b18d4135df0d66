import pytest

from kvtier.router.scorers.token_load import PLUGIN
from tests.router.cases import candidate, made, request


@pytest.mark.parametrize(
    ("tokens", "score"), [(0, 1.0), (1_048_576, 0.75), (4_194_304, 0.0), (9_000_000, 0.0)]
)
def test_score_falls_with_tokens_in_flight(tokens: int, score: float) -> None:
    assert made(PLUGIN).score(request(), [candidate(in_flight_tokens=tokens)]) == [score]


def test_threshold_is_configurable() -> None:
    busy = [candidate(in_flight_tokens=250)]
    assert made(PLUGIN, queue_threshold_tokens=1000).score(request(), busy) == [0.75]
    with pytest.raises(ValueError, match="queueThresholdTokens is 0"):
        PLUGIN.Parameters(queue_threshold_tokens=0)


def test_score_is_absolute() -> None:
    busy = [candidate("a", in_flight_tokens=2_097_152), candidate("b", in_flight_tokens=2_097_152)]
    assert made(PLUGIN).score(request(), busy) == [0.5, 0.5]
    assert made(PLUGIN).score(request(), []) == []
