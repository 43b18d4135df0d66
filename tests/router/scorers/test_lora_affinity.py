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
