from kvtier.router.filters.lora_affinity import PLUGIN
from tests.router.cases import candidate, made, names, request


def test_lora_affinity_filter_keeps_replicas_with_the_adapter() -> None:
    candidates = [
        candidate("a"),
        candidate("b", adapters=frozenset({"m"})),
        candidate("c", adapters=frozenset({"other"})),
    ]
    assert names(made(PLUGIN).keep(request(), candidates)) == ["b"]


def test_lora_affinity_filter_keeps_all_if_none_has_the_adapter() -> None:
    candidates = [candidate("a"), candidate("b", adapters=frozenset({"other"}))]
    assert names(made(PLUGIN).keep(request(), candidates)) == ["a", "b"]
    assert made(PLUGIN).keep(request(), []) == []
