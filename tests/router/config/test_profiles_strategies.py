import base64

import pytest

from kvtier.router.config.profiles import build_strategies, strategies_configuration
from tests.router.cases import FakeIndex, endpoint, names, request

FLEET = [
    endpoint("a", address="10.0.0.1:8000", in_flight=4, in_flight_tokens=100, kv_usage=0.1),
    endpoint("b", address="10.0.0.2:8000", in_flight=1, in_flight_tokens=900, kv_usage=0.5),
    endpoint("c", address="10.0.0.3:8000", in_flight=2, in_flight_tokens=500, kv_usage=0.4),
]
HOLDS = {"c": {"ram": 990}}


def picks(strategy: str, **fields: object) -> str:
    profile = build_strategies({"any": FakeIndex(HOLDS)})[strategy]
    decision = profile.decide(request(1000, **fields), FLEET, 0.0)
    return names(decision.chosen)[0]


@pytest.mark.parametrize(
    ("strategy", "picked"),
    [
        ("least-request", "b"),
        ("throughput", "a"),
        ("least-kv-cache", "a"),
        ("least-gpu-cache", "a"),
        ("prefix-cache", "c"),
        ("round-robin", "a"),
    ],
)
def test_strategy_picks_the_expected_replica(strategy: str, picked: str) -> None:
    assert picks(strategy) == picked


def test_scoring_strategy_always_picks_the_best() -> None:
    profiles = build_strategies({"any": FakeIndex(HOLDS)})
    for name in ("least-latency", "expected-ttft", "throughput", "least-kv-cache"):
        best = {
            names(profiles[name].decide(request(1000), FLEET, 0.0).chosen)[0] for _ in range(30)
        }
        assert len(best) == 1, name


def test_session_affinity_strategy_returns_to_the_address() -> None:
    profile = build_strategies({})["session-affinity"]
    headers = profile.response_headers(request(), FLEET[1])
    assert headers == {"x-session-id": base64.b64encode(b"10.0.0.2:8000").decode()}
    assert picks("session-affinity", headers=headers) == "b"


def test_strategies_include_those_of_aibrix() -> None:
    assert {
        "random",
        "least-request",
        "least-latency",
        "throughput",
        "prefix-cache",
        "power-of-two",
        "session-affinity",
    } <= set(build_strategies({}))


def test_strategies_are_the_profiles_of_their_configuration() -> None:
    assert list(strategies_configuration().profiles) == list(build_strategies({}))


def test_strategies_work_without_an_index() -> None:
    for profile in build_strategies({}).values():
        assert len(profile.decide(request(), FLEET, 0.0).chosen) == 3
