from collections.abc import Sequence

import pytest

from kvtier.errors import InvalidSettings
from kvtier.index.fleet.base import DEVICE, Match
from kvtier.index.fleet.prompt import Prompt
from kvtier.router.config.profiles import build_profiles
from kvtier.router.config.reading import parse_configuration
from tests.router.cases import HEAD, TIERED, FakeIndex, endpoint, names, profile_of, request


def test_profiles_share_plugin_instances() -> None:
    configuration = parse_configuration(
        HEAD + "- type: no-hit-lru-scorer\nschedulingProfiles:\n"
        "- {name: one, plugins: [{pluginRef: no-hit-lru-scorer}]}\n"
        "- {name: two, plugins: [{pluginRef: no-hit-lru-scorer}]}\n",
        "f",
    )
    built = build_profiles(configuration, {})
    fleet = [endpoint("a"), endpoint("b")]
    decision = built["one"].decide(request(), fleet, 0.0)
    assert names(decision.chosen) == ["a", "b"]
    built["one"].routed(request(), decision, decision.chosen[0])
    assert names(built["two"].decide(request(), fleet, 0.0).chosen) == ["b", "a"]


def test_build_profiles_rejects_a_missing_index() -> None:
    with pytest.raises(InvalidSettings, match="there is no index"):
        build_profiles(parse_configuration(TIERED, "f"), {"gpu-prefix-cache-scorer": FakeIndex()})


@pytest.mark.parametrize("one", ["round-robin-picker", "queue-scorer", "token-load-scorer"])
def test_profile_without_index_readers_does_not_touch_indexes(one: str) -> None:
    class Untouched(FakeIndex):
        def match(self, prompt: Prompt, replicas: Sequence[str]) -> list[Match]:
            raise AssertionError("no plugin reads the index")

    index = Untouched()
    profile = profile_of(one, index=index)
    assert not profile.reads_prompts
    decision = profile.decide(request(), [endpoint("a"), endpoint("b")], 0.0)
    profile.routed(request(), decision, decision.chosen[0])
    assert len(decision.candidates) == 2
    assert index.heard == []
    assert decision.missing_tokens(decision.chosen[0]) == 1000


@pytest.mark.parametrize(
    "one",
    [
        "expected-ttft-scorer",
        "no-hit-lru-scorer",
        "prefix-cache-picker",
        "prefix-cache-affinity-filter",
    ],
)
def test_profile_with_an_index_reader_queries_and_updates_the_index(one: str) -> None:
    index = FakeIndex({"a": {DEVICE: 5}})
    profile = profile_of(one, index=index)
    assert profile.reads_prompts
    decision = profile.decide(request(), [endpoint("a")], 0.0)
    profile.routed(request(), decision, decision.chosen[0])
    assert decision.candidates[0].matches["prefix"].tokens == {DEVICE: 5}
    assert index.heard == ["a"]
