import pytest

from kvtier.router.scorers.lora_affinity import PLUGIN
from tests.router.cases import candidate, made, request


def test_score_prefers_loaded_adapters_then_room() -> None:
    scorer = made(PLUGIN, max_adapters=2)
    candidates = [
        candidate("a", adapters=frozenset({"m", "other"})),
        candidate("b", adapters=frozenset({"other"})),
        candidate("c", adapters=frozenset({"other", "third"})),
    ]
    assert scorer.score(request(), candidates) == [1.0, 0.8, 0.0]


def test_score_assumes_room_without_max_adapters() -> None:
    full = [candidate(adapters=frozenset({"x", "y", "z"}))]
    assert made(PLUGIN).score(request(), full) == [0.8]


def test_negative_max_adapters_is_rejected() -> None:
    with pytest.raises(ValueError, match="maxAdapters is -1; write 0 or more"):
        PLUGIN.Parameters(max_adapters=-1)
