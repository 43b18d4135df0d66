"""Short constructors of requests, endpoints, candidates, an index and profiles for tests."""

from collections.abc import Mapping, Sequence
from typing import Any

from kvtier.clock import seeded
from kvtier.index.fleet.base import IndexSource, Match
from kvtier.index.fleet.prompt import Prompt, Unit
from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate, Endpoint, InferenceRequest, ReplicaLoad
from kvtier.router.choose.profile import Profile
from kvtier.router.config.profiles import build_profiles
from kvtier.router.config.reading import Configuration, parse_configuration

INDEX = "prefix"
HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n"

TIERED = (
    HEAD.replace("llm-d.ai/v1alpha1", "inference.networking.x-k8s.io/v1alpha1")
    + """\
- type: queue-scorer
- type: kv-cache-utilization-scorer
- type: prefix-cache-scorer
  name: gpu-prefix-cache-scorer
- type: prefix-cache-scorer
  name: cpu-prefix-cache-scorer
  parameters: {autoTune: false, lruCapacityPerServer: 41000}
schedulingProfiles:
- name: default
  plugins:
  - {pluginRef: queue-scorer, weight: 2}
  - {pluginRef: kv-cache-utilization-scorer, weight: 2}
  - {pluginRef: gpu-prefix-cache-scorer, weight: 1}
  - {pluginRef: cpu-prefix-cache-scorer, weight: 1}
"""
)
"""A configuration with an estimated index per tier, as in llm-d's guide."""


class Words:
    """A prompt of which only the length matters."""

    def __init__(self, tokens: int = 1000, unit: Unit = Unit.TOKEN) -> None:
        self.tokens = tokens
        self.unit = unit

    def chain(self, block_tokens: int) -> list[int]:
        return list(range(self.tokens // block_tokens))


class FakeIndex:
    """A `FleetIndex` with the given matches (replica -> tokens by tier).

    `heard` lists the replicas passed to `routed`.
    """

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
        raise AssertionError("choosing must not resize an index")

    def remove(self, replica: str) -> None:
        raise AssertionError("choosing must not remove a replica")


def endpoint(name: str = "a", *, load: ReplicaLoad | None = None, **fields: Any) -> Endpoint:
    """Return an endpoint that serves `m`; `fields` are those of Endpoint or ReplicaLoad."""
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
    """Return a candidate; `holds` is its match in the index `prefix`, by tier."""
    return Candidate(endpoint(name, **fields), {INDEX: Match(holds or {}, total)})


def context(**fields: Any) -> plugins.PluginContext:
    fields.setdefault("name", "it")
    fields.setdefault("random", seeded(0))
    fields.setdefault("now_s", lambda: 0.0)
    return plugins.PluginContext(**fields)


def made(plugin: Any, in_context: plugins.PluginContext | None = None, **parameters: Any) -> Any:
    """Return an instance of the plugin; parameters are given by their Python names."""
    return plugin(plugin.Parameters(**parameters), in_context or context())


def names(candidates: Sequence[Candidate]) -> list[str]:
    return [one.endpoint.name for one in candidates]


def configured(*types: str, profile: str = "default") -> Configuration:
    """Return a configuration of one profile with plugins of these types."""
    plugins = "".join(f"- type: {one}\n" for one in types)
    refs = ", ".join(f"{{pluginRef: {one}}}" for one in types)
    return parse_configuration(
        f"{HEAD}{plugins}schedulingProfiles:\n- {{name: {profile}, plugins: [{refs}]}}\n", "f"
    )


def profile_of(*types: str, index: FakeIndex | None = None, seed: int = 0) -> Profile:
    """Return a profile with plugins of these types."""
    made = build_profiles(configured(*types), {"prefix": index} if index else {}, seed)
    return made["default"]
