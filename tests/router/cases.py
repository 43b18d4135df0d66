"""Requests, endpoints and an index to choose by, as short as they can be written."""

from collections.abc import Mapping, Sequence
from typing import Any

from kvtier.clock import seeded
from kvtier.index.fleet.base import IndexSource, Match
from kvtier.index.fleet.prompt import Prompt, Unit
from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate, Endpoint, InferenceRequest, ReplicaLoad

INDEX = "prefix"


class Words:
    """A prompt of which only the length matters."""

    def __init__(self, tokens: int = 1000, unit: Unit = Unit.TOKEN) -> None:
        self.tokens = tokens
        self.unit = unit

    def chain(self, block_tokens: int) -> list[int]:
        return list(range(self.tokens // block_tokens))


class FakeIndex:
    """Answers what it was told: replica -> tokens by tier. `heard` is what was routed."""

    def __init__(self, holds: Mapping[str, Mapping[str, int]] | None = None) -> None:
        self.holds = dict(holds or {})
        self.heard: list[str] = []

    @property
    def source(self) -> IndexSource:
        return IndexSource.ESTIMATED

    def match(self, prompt: Prompt, replicas: Sequence[str]) -> list[Match]:
        return [Match(self.holds.get(name, {}), prompt.tokens) for name in replicas]

    def routed(self, prompt: Prompt, replica: str) -> None:
        self.heard.append(replica)

    def resize(self, replica: str, tier: str, capacity_tokens: int) -> None:
        raise AssertionError("choosing resizes nothing")

    def remove(self, replica: str) -> None:
        raise AssertionError("choosing drops nothing")


def endpoint(name: str = "a", *, load: ReplicaLoad | None = None, **fields: Any) -> Endpoint:
    """One that serves `m`; `fields` are those of Endpoint, or of its Load."""
    of_load = {key: fields.pop(key) for key in list(fields) if key in ReplicaLoad.__struct_fields__}
    fields.setdefault("address", f"{name}:8000")
    fields.setdefault("models", frozenset({"m"}))
    return Endpoint(name=name, load=load or ReplicaLoad(**of_load), **fields)


def request(tokens: int = 1000, **fields: Any) -> InferenceRequest:
    fields.setdefault("request_id", "r")
    fields.setdefault("model", "m")
    return InferenceRequest(prompt=fields.pop("prompt", Words(tokens)), **fields)


def candidate(
    name: str = "a", holds: Mapping[str, int] | None = None, total: int = 1000, **fields: Any
) -> Candidate:
    """`holds` is what the index `prefix` knows, by tier."""
    return Candidate(endpoint(name, **fields), {INDEX: Match(holds or {}, total)})


def context(**fields: Any) -> plugins.PluginContext:
    fields.setdefault("name", "it")
    fields.setdefault("random", seeded(0))
    fields.setdefault("now_s", lambda: 0.0)
    return plugins.PluginContext(**fields)


def made(plugin: Any, in_context: plugins.PluginContext | None = None, **parameters: Any) -> Any:
    """The part with these parameters, in Python's names."""
    return plugin(plugin.Parameters(**parameters), in_context or context())


def names(candidates: Sequence[Candidate]) -> list[str]:
    return [one.endpoint.name for one in candidates]
