import math

import pytest

from kvtier.router.filters.prefix_cache_affinity import PLUGIN
from tests.router.cases import candidate, made, names, request

HOLDER = candidate("a", {"ram": 800})
OTHER = candidate("b", {"ram": 790})


def test_filter_keeps_replicas_above_the_affinity_threshold() -> None:
    assert names(made(PLUGIN).keep(request(), [HOLDER, OTHER])) == ["a"]
    assert names(made(PLUGIN, affinity_threshold=0.79).keep(request(), [HOLDER, OTHER])) == [
        "a",
        "b",
    ]


def test_filter_keeps_all_if_none_is_above_the_threshold() -> None:
    assert names(made(PLUGIN, affinity_threshold=0.99).keep(request(), [HOLDER, OTHER])) == [
        "a",
        "b",
    ]


@pytest.mark.parametrize(("tokens", "stay"), [(20_000, ["a"]), (20_010, ["a", "b"])])
def test_filter_keeps_all_if_the_sticky_replica_is_too_busy(tokens: int, stay: list[str]) -> None:
    # At 10,000 tokens per second, 20,000 take 2 s against 1 s: not more than 1 s later.
    busy = candidate("a", {"ram": 900}, in_flight_tokens=tokens, prefill_tokens_per_s=10_000.0)
    other = candidate("b", in_flight_tokens=10_000)
    one = made(PLUGIN, max_ttft_penalty_ms=1000.0, peak_prefill_throughput=10_000.0)
    assert names(one.keep(request(), [busy, other])) == stay


def test_penalty_compares_the_least_busy_of_both_groups() -> None:
    # Sticky replicas start after 3 s and 1 s, the others after 9 s and 0.5 s: 0.5 s later.
    fleet = [
        candidate("a", {"ram": 900}, in_flight_tokens=3000),
        candidate("b", {"ram": 900}, in_flight_tokens=1000),
        candidate("c", in_flight_tokens=9000),
        candidate("d", in_flight_tokens=500),
    ]
    for penalty_ms, stay in ((500.0, ["a", "b"]), (499.0, ["a", "b", "c", "d"])):
        one = made(PLUGIN, max_ttft_penalty_ms=penalty_ms, peak_prefill_throughput=1000.0)
        assert names(one.keep(request(), fleet)) == stay
    everyone = [candidate("a", {"ram": 900}, in_flight_tokens=10**9), candidate("b", {"ram": 990})]
    assert names(made(PLUGIN).keep(request(), everyone)) == ["a", "b"], "there is no other replica"


def test_penalty_of_zero_always_sticks() -> None:
    busy = candidate("a", {"ram": 900}, in_flight_tokens=10**9)
    one = made(PLUGIN, max_ttft_penalty_ms=0.0)
    assert names(one.keep(request(), [busy, OTHER])) == ["a"]


def test_exploration_keeps_all() -> None:
    one = made(PLUGIN, exploration_probability=1.0)
    assert names(one.keep(request(), [HOLDER, OTHER])) == ["a", "b"]


def test_single_candidate_is_kept() -> None:
    assert names(made(PLUGIN).keep(request(), [OTHER])) == ["b"]
    assert made(PLUGIN).keep(request(), []) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"affinity_threshold": 1.1},
        {"affinity_threshold": -0.1},
        {"affinity_threshold": math.nan},
        {"exploration_probability": -0.1},
        {"max_ttft_penalty_ms": -1.0},
        {"peak_prefill_throughput": 0.0},
    ],
)
def test_parameters_out_of_range_are_rejected(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        PLUGIN.Parameters(**wrong)


def test_defaults_are_those_of_llm_d() -> None:
    # 18 s at 15,928 tokens per second are 286,704 tokens.
    for tokens, stay in ((286_704, ["a"]), (286_705, ["a", "b"])):
        busy = candidate("a", {"ram": 800}, in_flight_tokens=tokens)
        assert names(made(PLUGIN).keep(request(), [busy, OTHER])) == stay
