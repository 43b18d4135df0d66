import json
from typing import Any

import aiohttp
import pytest

from kvtier.router.fleet.members import ModelCard
from kvtier.router.learn.aliases import ModelAliases, fetch_models
from tests.router.replicas import replicas
from tests.router.route.routers import run


def cards(*entries: dict[str, Any]) -> tuple[ModelCard, ...]:
    """Return cards as a replica lists them; each contains the time of the response."""
    cards.count = getattr(cards, "count", 0) + 1  # type: ignore[attr-defined]
    return tuple(
        ModelCard(entry["id"], json.dumps({**entry, "created": cards.count}).encode())  # type: ignore[attr-defined]
        for entry in entries
    )


def base(name: str, root: str = "/models/llama") -> dict[str, Any]:
    return {"id": name, "root": root, "parent": None}


def adapter(name: str, parent: str) -> dict[str, Any]:
    return {"id": name, "root": f"/adapters/{name}", "parent": parent}


def test_names_of_model_are_aliases_but_adapter_is_not() -> None:
    served = ModelAliases()
    served.update("r", cards(base("b"), base("a"), adapter("sql", "b")))
    assert [served.canonical(name) for name in ("a", "b", "sql", "unknown")] == [
        "a",
        "a",
        "sql",
        "unknown",
    ]
    assert served.base_model("r") == "a"
    assert served.base_model("stranger") is None


def test_names_of_one_adapter_are_no_aliases() -> None:
    served = ModelAliases()
    twins = [{**adapter(name, "m"), "root": "/adapters/twin"} for name in ("one", "two")]
    served.update("r", cards(base("m"), *twins))
    assert (served.canonical("one"), served.canonical("two")) == ("one", "two")


def test_aliases_join_across_replicas() -> None:
    served = ModelAliases()
    served.update("r", cards(base("c"), base("b")))
    served.update("s", cards(base("z", "/other"), base("y", "/other")))
    served.update("t", cards(base("b", "/elsewhere"), base("a", "/elsewhere")))
    assert {served.canonical(name) for name in "abc"} == {"a"}
    assert (served.base_model("r"), served.base_model("s"), served.base_model("t")) == (
        "a",
        "y",
        "a",
    )
    served.remove("t")
    served.remove("t")
    assert (served.canonical("c"), served.canonical("a"), served.base_model("r")) == ("b", "a", "b")


def test_models_with_different_roots_are_no_aliases() -> None:
    served = ModelAliases()
    served.update("r", cards(base("a", "/one"), base("b", "/two"), {"id": "c"}, {"id": "d"}))
    assert [served.canonical(name) for name in "abcd"] == list("abcd")


def test_aliases_follow_changed_lists() -> None:
    served = ModelAliases()
    served.update("r", cards(base("b")))
    served.update("r", cards(base("b"), base("a")))
    assert served.canonical("b") == "a"
    served.update("r", cards(base("b")))
    assert served.canonical("b") == "b"


@pytest.mark.parametrize(
    "text", [b"nonsense", b'{"id": 5}', b'{"id": "a", "root": 7}', b"[" * 100_000, b"\xff"]
)
def test_malformed_card_has_no_aliases(text: bytes) -> None:
    served = ModelAliases()
    served.update("r", (ModelCard("a", text), *cards(base("b"))))
    assert (served.canonical("a"), served.canonical("b"), served.base_model("r")) == ("a", "b", "a")


def test_models_are_found_by_name_and_path() -> None:
    served = ModelAliases()
    served.update("r", cards(base("b"), base("a"), adapter("sql", "b")))
    served.update("s", cards(base("x")))
    assert served.models("b") == {"a"}
    assert served.models("/models/llama") == {"a", "x"}
    assert served.models("sql") == served.models("/adapters/sql") == frozenset()


def test_fetch_models_is_bounded() -> None:
    async def test() -> None:
        async with replicas() as (a,), aiohttp.ClientSession() as session:
            assert [card.id for card in await fetch_models(session, a.url, 1.0)] == ["m"]
            assert await fetch_models(session, f"{a.url}/nowhere", 1.0) == ()
            assert await fetch_models(session, "http://127.0.0.1:1", 1.0) == ()

    run(test())
