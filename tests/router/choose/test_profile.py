import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.index.fleet.base import DEVICE, Match
from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate, Endpoint, InferenceRequest, ReplicaLoad
from kvtier.router.choose.profile import Profile
from kvtier.router.choose.record import record
from kvtier.router.config.profiles import build_profiles
from kvtier.router.config.reading import Configuration, parse_configuration
from tests.router.cases import (
    TIERED,
    FakeIndex,
    candidate,
    configured,
    context,
    endpoint,
    names,
    profile_of,
    request,
)


def with_scorer(configuration: Configuration, scorer: Any) -> Profile:
    """Build the profile with `scorer` in place of its queue-scorer."""
    old = configuration.plugins["queue-scorer"]
    new = msgspec.structs.replace(old, plugin=lambda parameters, context: scorer)
    plugins = {**configuration.plugins, "queue-scorer": new}
    return build_profiles(msgspec.structs.replace(configuration, plugins=plugins), {})["default"]


def test_decision_with_the_llm_d_guide_weights_matches_manual_calculation() -> None:
    indexes = {
        "gpu-prefix-cache-scorer": FakeIndex({"a": {DEVICE: 400}}),
        "cpu-prefix-cache-scorer": FakeIndex({"a": {"ram": 800}, "b": {"ram": 1200}}),
    }
    profile = build_profiles(parse_configuration(TIERED, "f"), indexes)["default"]
    fleet = [
        endpoint("a", waiting=4, kv_usage=0.5),
        endpoint("b", waiting=0, kv_usage=0.75),
        endpoint("c", waiting=2, kv_usage=0.0),
    ]
    decision = profile.decide(request(1600), fleet, 0.0)
    # 1600 tokens are 100 blocks of 16 tokens.
    assert decision.scores == [
        [0.0, 1.0, 0.5],
        [0.5, 0.25, 1.0],
        [0.25, 0.0, 0.0],
        [0.5, 0.75, 0.0],
    ]
    # 2*0 + 2*0.5 + 0.25 + 0.5; 2*1 + 2*0.25 + 0.75; 2*0.5 + 2*1
    assert decision.totals == [1.75, 3.25, 3.0]
    assert names(decision.chosen) == ["b", "c", "a"]
    assert decision.endpoints[0] is fleet[1]


def test_routed_updates_all_indexes_and_learning_plugins() -> None:
    index, other = FakeIndex(), FakeIndex()
    profile = build_profiles(configured("no-hit-lru-scorer"), {"prefix": index, "other": other})[
        "default"
    ]
    fleet = [endpoint("a"), endpoint("b")]
    first = profile.decide(request(), fleet, 0.0)
    assert index.heard == []
    profile.routed(request(), first, first.chosen[1])  # as if the first choice had failed
    assert index.heard == other.heard == [first.chosen[1].endpoint.name]
    second = profile.decide(request(), fleet, 1.0)
    assert second.chosen[0].endpoint is first.chosen[0].endpoint


def test_index_with_several_names_is_updated_once() -> None:
    index = FakeIndex({"a": {"ram": 160}})
    profile = build_profiles(configured("expected-ttft-scorer"), {"one": index, "other": index})[
        "default"
    ]
    decision = profile.decide(request(), [endpoint("a")], 0.0)
    profile.routed(request(), decision, decision.chosen[0])
    assert index.heard == ["a"]
    assert {name: match.tokens for name, match in decision.chosen[0].matches.items()} == {
        "one": {"ram": 160},
        "other": {"ram": 160},
    }


def test_filters_run_before_scorers_and_are_recorded() -> None:
    profile = profile_of("decode-filter", "queue-scorer")
    fleet = [
        endpoint("a", labels={"llm-d.ai/role": "prefill"}),
        endpoint("b", waiting=3),
        endpoint("c", waiting=1),
    ]
    decision = profile.decide(request(), fleet, 0.0)
    assert names(decision.candidates) == ["a", "b", "c"]
    assert names(decision.kept) == ["b", "c"]
    assert decision.removed == {"a": "decode-filter"}
    assert decision.totals == [0.0, 1.0]
    assert names(decision.chosen) == ["c", "b"]


def test_decision_without_candidates_chooses_none() -> None:
    profile = profile_of("decode-filter", "queue-scorer", "expected-ttft-scorer")
    gone = [endpoint("a", labels={"llm-d.ai/role": "prefill"})]
    assert profile.decide(request(), gone, 0.0).chosen == []
    assert profile.decide(request(), [], 0.0).chosen == []


class Wild:
    def score(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
        return [7.0, -3.0, math.nan, 0.25]


def test_scores_are_clamped_before_weighting() -> None:
    profile = with_scorer(configured("queue-scorer"), Wild())
    decision = profile.decide(request(), [endpoint(name) for name in "abcd"], 0.0)
    assert decision.scores == [[1.0, 0.0, 0.0, 0.25]]


class Broken:
    def score(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
        raise RuntimeError("a bug")


class Short:
    def score(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
        return [1.0]


@pytest.mark.parametrize("scorer", [Broken(), Short()])
def test_failing_scorer_is_left_out_and_logged_once(
    scorer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    profile = with_scorer(configured("queue-scorer", "kv-cache-utilization-scorer"), scorer)
    fleet = [endpoint("a", kv_usage=0.5), endpoint("b", kv_usage=0.25)]
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            decision = profile.decide(request(), fleet, 0.0)
            assert decision.totals == [0.5, 0.75]
            assert names(decision.chosen) == ["b", "a"]
    assert len(caplog.records) == 1
    assert "queue-scorer failed" in caplog.text


class Telling:
    """A scorer of which every optional method fails."""

    def score(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
        return [1.0, 0.0]

    def reason(self, request: InferenceRequest, candidate: Candidate) -> str:
        raise RuntimeError("a bug")

    def routed(
        self, request: InferenceRequest, candidates: Sequence[Candidate], chosen: Candidate
    ) -> None:
        raise RuntimeError("a bug")

    def response_headers(self, request: InferenceRequest, endpoint: Endpoint) -> dict[str, str]:
        raise RuntimeError("a bug")


def test_failing_reason_routed_or_header_method_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    configuration = configured("queue-scorer", "session-affinity-scorer")
    profile = with_scorer(configuration, Telling())
    fleet = [endpoint("a"), endpoint("b", waiting=1)]
    for _ in range(3):
        decision = profile.decide(request(), fleet, 0.0)
        assert decision.scores[0] == [1.0, 0.0]
        profile.routed(request(), decision, decision.chosen[0])
        assert set(profile.response_headers(request(), fleet[0])) == {"x-session-token"}
        told = record(decision)
        assert told.endpoints[0].reasons["queue-scorer"] == "no reason: the scorer failed"
    said = [one.getMessage() for one in caplog.records]
    assert len(said) == 3
    assert all("queue-scorer failed" in one for one in said)


class NoFilter:
    def keep(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[Candidate]:
        raise RuntimeError("a bug")


class NoPicker:
    def pick(
        self, request: InferenceRequest, candidates: Sequence[Candidate], scores: Sequence[float]
    ) -> list[Candidate]:
        raise RuntimeError("a bug")


def test_failing_filter_or_picker_does_not_fail_the_request() -> None:
    configuration = configured("decode-filter", "queue-scorer", "random-picker")
    plugins = dict(configuration.plugins)
    for name, part in (("decode-filter", NoFilter()), ("random-picker", NoPicker())):
        plugins[name] = msgspec.structs.replace(
            plugins[name], plugin=lambda parameters, context, part=part: part
        )
    profile = build_profiles(msgspec.structs.replace(configuration, plugins=plugins), {})["default"]
    decision = profile.decide(request(), [endpoint("a", waiting=1), endpoint("b")], 0.0)
    assert names(decision.chosen) == ["b"]


def test_plugins_see_the_time_of_the_decision() -> None:
    profile = profile_of("utilization-detector")
    fleet = [endpoint("a", updated_s=90.0), endpoint("b", updated_s=100.0)]
    assert names(profile.decide(request(), fleet, 91.0).kept) == ["a", "b"]
    assert names(profile.decide(request(), fleet, 101.0).kept) == ["b"]


def test_profile_collects_the_headers_of_its_plugins() -> None:
    profile = profile_of("session-affinity-scorer", "queue-scorer")
    assert profile.headers == {"x-session-token"}
    assert set(profile.response_headers(request(), endpoint("a"))) == {"x-session-token"}
    assert profile_of("queue-scorer").headers == frozenset()


SCORERS = sorted(name for name in plugins.known_plugins() if name.endswith("-scorer"))
PICKERS = sorted(name for name in plugins.known_plugins() if name.endswith("-picker"))
FILTERS = sorted(
    name for name in plugins.known_plugins() if name.endswith(("-filter", "-detector"))
)

loads = st.builds(
    ReplicaLoad,
    waiting=st.integers(0, 200),
    running=st.integers(0, 200),
    kv_usage=st.floats(0, 1),
    block_tokens=st.sampled_from([0, 16, 256]),
    adapters=st.sampled_from([frozenset(), frozenset({"m"}), frozenset({"x"})]),
    prefill_tokens_per_s=st.floats(0, 1e5),
)


@st.composite
def fleets(draw: st.DrawFn) -> tuple[list[Endpoint], dict[str, Mapping[str, int]]]:
    """Draw endpoints, and what each holds of a prompt of 4,096 tokens."""
    endpoints, holds = [], {}
    for place in range(draw(st.integers(0, 6))):
        name = f"e{place}"
        endpoints.append(
            endpoint(
                name,
                load=draw(loads),
                in_flight=draw(st.integers(0, 50)),
                in_flight_tokens=draw(st.integers(0, 10**7)),
                pending_tokens=draw(st.none() | st.integers(0, 10**6)),
            )
        )
        held = sorted(draw(st.lists(st.integers(0, 4096), max_size=3)))
        holds[name] = dict(zip((DEVICE, "ram", "disk"), held, strict=False))
    return endpoints, holds


def indexes(configuration: Configuration, holds: Mapping[str, Any]) -> dict[str, FakeIndex]:
    return {name: FakeIndex(holds) for name in configuration.indexes}


@pytest.mark.parametrize("name", SCORERS)
@settings(max_examples=40)
@given(fleet=fleets(), order=st.randoms(use_true_random=False))
def test_scores_are_within_bounds_and_independent_of_order(
    name: str, fleet: tuple[list[Endpoint], dict[str, Any]], order: Any
) -> None:
    endpoints, holds = fleet
    _, plugin = plugins.find_plugin(name) or (None, None)
    candidates = [Candidate(one, {"prefix": Match(holds[one.name], 4096)}) for one in endpoints]
    scorer = plugin(plugin.Parameters(), context())
    scores = scorer.score(request(4096), candidates)
    assert len(scores) == len(candidates)
    assert all(0.0 <= score <= 1.0 for score in scores)
    by_name = {one.endpoint.name: score for one, score in zip(candidates, scores, strict=True)}
    order.shuffle(candidates)
    again = scorer.score(request(4096), candidates)
    assert {one.endpoint.name: score for one, score in zip(candidates, again, strict=True)} == (
        pytest.approx(by_name)
    )


@pytest.mark.parametrize("name", FILTERS)
@settings(max_examples=40)
@given(fleet=fleets())
def test_filters_return_a_subsequence_of_the_candidates(
    name: str, fleet: tuple[list[Endpoint], dict[str, Any]]
) -> None:
    endpoints, holds = fleet
    _, plugin = plugins.find_plugin(name) or (None, None)
    candidates = [Candidate(one, {"prefix": Match(holds[one.name], 4096)}) for one in endpoints]
    kept = plugin(plugin.Parameters(), context()).keep(request(4096), candidates)
    assert kept == [one for one in candidates if one in kept]


@pytest.mark.parametrize("name", PICKERS)
@settings(max_examples=40)
@given(fleet=fleets(), seed=st.integers(0, 2**32), order=st.randoms(use_true_random=False))
def test_pickers_return_distinct_candidates_determined_by_the_seed(
    name: str, fleet: tuple[list[Endpoint], dict[str, Any]], seed: int, order: Any
) -> None:
    endpoints, holds = fleet
    configuration = configured("token-load-scorer", name)
    given_indexes = indexes(configuration, holds)

    def chosen() -> list[list[str]]:
        profile = build_profiles(configuration, given_indexes, seed)["default"]
        return [names(profile.decide(request(4096), endpoints, 0.0).chosen) for _ in range(3)]

    first = chosen()
    for one in first:
        assert len(one) == len(set(one)) == min(4, len(endpoints))
    order.shuffle(endpoints)
    assert chosen() == first


def test_scorers_accept_a_candidate_without_matches() -> None:
    bare = [Candidate(endpoint("a"), {}), candidate("b")]
    for name in SCORERS:
        _, plugin = plugins.find_plugin(name) or (None, None)
        assert len(plugin(plugin.Parameters(), context()).score(request(), bare)) == 2
