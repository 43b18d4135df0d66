import math

import pytest

from kvtier.router.choose.base import ReplicaTier
from kvtier.router.scorers.expected_ttft import PLUGIN
from tests.router.cases import INDEX, candidate, context, made, request


def scorer(**parameters: float):  # type: ignore[no-untyped-def]
    parameters.setdefault("running_seconds", 0.0)
    parameters.setdefault("compute_weight", 1.0)
    return made(PLUGIN, context(index=INDEX), **parameters)


def seconds(one) -> float:  # type: ignore[no-untyped-def]
    """As it says them itself: golden numbers below are seconds."""
    return float(scorer().reason(request(one.matches[INDEX].total_tokens), one).split()[0])


RATE = {"prefill_tokens_per_s": 1000.0}


def test_computing_what_is_missing() -> None:
    # 10,000 of 12,000 tokens are on the device: 2,000 at 1,000 a second
    assert seconds(candidate("a", {"device": 10_000}, 12_000, **RATE)) == 2.0


def test_the_last_token_is_always_computed() -> None:
    assert seconds(candidate("a", {"device": 12_000}, 12_000, **RATE)) == 0.001


def test_loading_what_slower_tiers_add() -> None:
    tiers = {
        "device": ReplicaTier(capacity_tokens=1),
        "ram": ReplicaTier(capacity_tokens=1, load_tokens_per_s=20_000.0),
        "disk": ReplicaTier(capacity_tokens=1, load_tokens_per_s=4_000.0),
    }
    held = {"device": 2_000, "ram": 6_000, "disk": 10_000}
    # 4,000 from RAM at 20,000: 0.2; 4,000 from disk at 4,000: 1; 2,000 computed at 1,000: 2
    assert seconds(candidate("a", held, 12_000, tiers=tiers, **RATE)) == pytest.approx(3.2)


def test_loading_is_never_reckoned_slower_than_computing() -> None:
    tiers = {"disk": ReplicaTier(capacity_tokens=1, load_tokens_per_s=10.0)}
    # 11,000 at 1,000 a second and 1,000 more computed
    assert seconds(candidate("a", {"disk": 11_000}, 12_000, tiers=tiers, **RATE)) == 12.0


@pytest.mark.parametrize(
    ("tier", "expected"),
    # 8,000 tokens at 16, 4, 2, 1.5 and 1 times 1,000 a second, and one token computed
    [("ram", 0.501), ("disk", 2.001), ("shared", 4.001), ("objectstore", 5.334), ("tape", 8.001)],
)
def test_tiers_that_nobody_measured_follow_the_prefill_rate(tier: str, expected: float) -> None:
    assert seconds(candidate("a", {tier: 8_000}, 8_000, **RATE)) == expected


def test_pending_tokens_of_this_router_are_ahead() -> None:
    ahead = candidate("a", {}, 2_000, in_flight=3, pending_tokens=5_000, **RATE)
    assert seconds(ahead) == 7.0


def test_requests_that_others_sent_wait_as_well() -> None:
    # 5 wait, 3 of them may be ours: 2 more as long as this one, 5,000 pending, 2,000 own
    ahead = candidate(
        "a",
        {},
        2_000,
        waiting=5,
        in_flight=3,
        in_flight_tokens=9_000,
        pending_tokens=5_000,
        **RATE,
    )
    assert seconds(ahead) == 11.0


@pytest.mark.parametrize("allowed", [0, 32_000])
def test_output_that_requests_may_have_is_nothing_to_compute(allowed: int) -> None:
    # 3 wait and 1 is in flight: 2 more of 1,000 tokens each, and 1,000 of its own
    ahead = candidate(
        "a",
        {},
        1_000,
        waiting=3,
        in_flight=1,
        in_flight_tokens=1_000 + allowed,
        pending_tokens=0,
        **RATE,
    )
    assert seconds(ahead) == 3.0


def test_without_pending_tokens_those_not_yet_running_count_as_waiting() -> None:
    # in flight 4, running 1: 3 wait, as long as this one of 1,000
    ahead = candidate("a", {}, 1_000, running=1, in_flight=4, in_flight_tokens=8_000, **RATE)
    assert seconds(ahead) == 4.0
    # nothing in flight from here
    assert seconds(candidate("a", {}, 1_000, waiting=2, **RATE)) == 3.0


def test_each_request_on_the_endpoint_costs_a_share_of_the_steps() -> None:
    busy = [candidate("a", {}, 1_000, running=50, **RATE), candidate("b", {}, 1_000, **RATE)]
    # 1.0 + 50 * 0.01 against 1.0
    assert scorer(running_seconds=0.01).score(request(), busy) == [pytest.approx(1 / 1.5), 1.0]


def test_the_score_is_the_least_seconds_by_these() -> None:
    three = [
        candidate("a", {"device": 3_000}, 4_000, **RATE),  # 1 s
        candidate("b", {"device": 2_000}, 4_000, **RATE),  # 2 s
        candidate("c", {}, 4_000, **RATE),  # 4 s
    ]
    assert scorer().score(request(4_000), three) == [1.0, 0.5, 0.25]


def test_a_prefix_in_ram_beats_an_idle_endpoint_exactly_when_that_is_sooner() -> None:
    def best(pending: int) -> float:
        holder = candidate("a", {"ram": 16_000}, 16_000, pending_tokens=pending, **RATE)
        idle = candidate("b", {}, 16_000, pending_tokens=0, **RATE)
        return float(scorer().score(request(16_000), [holder, idle])[0])

    # loading takes 1.001 s, computing 16: worth waiting for up to 14,999 tokens
    assert best(14_990) == 1.0
    assert best(15_010) < 1.0


def test_computing_counts_more_than_waiting() -> None:
    # 3 s of waiting against 1.5 s of computing, which counts 3 * 1.5
    two = [
        candidate("a", {"device": 1_500}, 1_500, pending_tokens=3_000, **RATE),
        candidate("b", {}, 1_500, pending_tokens=0, **RATE),
    ]
    assert scorer().score(request(1_500), two) == [pytest.approx(1.5 / 3.001), 1.0]
    # 3 s and 3 * 0.001 against 4.5
    assert scorer(compute_weight=3.0).score(request(1_500), two) == [
        1.0,
        pytest.approx(3.003 / 4.5),
    ]
    assert PLUGIN.Parameters().compute_weight == 3.0


def test_a_slow_replica_that_idles_is_not_left_beside_a_queue() -> None:
    # Usual: 1,500 a second, so computing 1,500 counts 2 more on both. 1.5 + 0.75 + 2 against
    # 1.5 + 2; at their own rates it would be 1.5 + 3 * 0.75 against 3 * 1.5.
    two = [
        candidate("a", {}, 1_500, pending_tokens=3_000, prefill_tokens_per_s=2_000.0),
        candidate("b", {}, 1_500, pending_tokens=0, prefill_tokens_per_s=1_000.0),
    ]
    assert scorer(compute_weight=3.0).score(request(1_500), two) == [
        pytest.approx(3.5 / 4.25),
        1.0,
    ]


def test_rates_that_nobody_reports_are_those_of_others_or_the_default() -> None:
    known = candidate("a", {}, 4_000, prefill_tokens_per_s=2_000.0)
    unknown = candidate("b", {"device": 2_000}, 4_000)
    # a: 2 s; b computes 2,000 at a's 2,000 a second: 1 s
    both = scorer()
    assert both.score(request(4_000), [known, unknown]) == [0.5, 1.0]
    assert both.reason(request(4_000), unknown).startswith("1.000 s ")
    # 8,000 a second where nobody tells
    assert seconds(candidate("a", {}, 4_000)) == 0.5


@pytest.mark.parametrize("rate", [math.nan, math.inf, -1.0, 0.0])
def test_rates_that_cannot_be_are_as_good_as_none(rate: float) -> None:
    tiers = {"ram": ReplicaTier(capacity_tokens=1, load_tokens_per_s=rate)}
    lying = candidate("a", {"ram": 4_000}, 8_000, prefill_tokens_per_s=rate, tiers=tiers)
    assert scorer().score(request(8_000), [lying, candidate("b", {}, 8_000)]) == [
        1.0,
        pytest.approx((0.5 + 4_000 / 128_000) / 1.0),
    ]


def test_an_empty_prompt_and_nobody() -> None:
    assert scorer().score(request(0), [candidate("a", {}, 0)]) == [1.0]
    assert scorer().score(request(0), []) == []


def test_it_looks_at_all_indexes_where_none_is_named() -> None:
    assert made(PLUGIN).score(request(), [candidate("a", {"ram": 16})]) == [1.0]


def test_it_says_what_the_seconds_are() -> None:
    alone = candidate("a", {}, 2_000, **RATE)
    weighed = scorer(compute_weight=3.0)
    weighed.score(request(2_000), [alone])
    assert weighed.reason(request(2_000), alone).startswith("2.000 s (cost 6.000): ")
    said = scorer().reason(request(2_000), candidate("a", {"ram": 1_000}, 2_000, **RATE))
    assert (
        said == "1.062 s (cost 1.062): 0.000 waiting, 1.000 computing, 0.062 loading, 0.000 running"
    )


@pytest.mark.parametrize(
    "wrong",
    [{"prefill_tokens_per_second": 0.0}, {"running_seconds": -1.0}, {"compute_weight": 0.5}],
)
def test_rates_of_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        PLUGIN.Parameters(**wrong)
