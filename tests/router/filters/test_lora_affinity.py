from kvtier.router.filters.lora_affinity import PLUGIN
from tests.router.cases import candidate, made, names, request


def test_only_those_that_have_the_adapter_where_any_has_it() -> None:
    candidates = [
        candidate("a"),
        candidate("b", adapters=frozenset({"m"})),
        candidate("c", adapters=frozenset({"other"})),
    ]
    assert names(made(PLUGIN).keep(request(), candidates)) == ["b"]


def test_all_where_nobody_has_it() -> None:
    candidates = [candidate("a"), candidate("b", adapters=frozenset({"other"}))]
    assert names(made(PLUGIN).keep(request(), candidates)) == ["a", "b"]
    assert made(PLUGIN).keep(request(), []) == []
