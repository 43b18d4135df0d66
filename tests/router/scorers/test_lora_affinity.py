import pytest

from kvtier.router.scorers.lora_affinity import PLUGIN
from tests.router.cases import candidate, made, request


def test_loaded_then_room_then_none() -> None:
    scorer = made(PLUGIN, max_adapters=2)
    candidates = [
        candidate("a", adapters=frozenset({"m", "other"})),
        candidate("b", adapters=frozenset({"other"})),
        candidate("c", adapters=frozenset({"other", "third"})),
    ]
    assert scorer.score(request(), candidates) == [1.0, 0.8, 0.0]


def test_without_a_bound_there_is_always_room() -> None:
    full = [candidate(adapters=frozenset({"x", "y", "z"}))]
    assert made(PLUGIN).score(request(), full) == [0.8]


def test_adapters_of_less_than_none_are_refused() -> None:
    with pytest.raises(ValueError, match="maxAdapters is -1; write 0 or more"):
        PLUGIN.Parameters(max_adapters=-1)
