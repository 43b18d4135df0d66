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
    """Return the seconds in the scorer's own reason."""
    return float(scorer().reason(request(one.matches[INDEX].total_tokens), one).split()[0])


RATE = {"prefill_tokens_per_s": 1000.0}


def test_missing_tokens_are_computed_at_the_prefill_rate() -> None:
    # 10,000 of 12,000 tokens are on the device; 2,000 are computed at 1,000 per second.
    assert seconds(candidate("a", {"device": 10_000}, 12_000, **RATE)) == 2.0


def test_last_token_is_always_computed() -> None:
    assert seconds(candidate("a", {"device": 12_000}, 12_000, **RATE)) == 0.001


def test_tokens_added_by_slower_tiers_are_loaded() -> None:
    tiers = {
        "device": ReplicaTier(capacity_tokens=1),
        "ram": ReplicaTier(capacity_tokens=1, load_tokens_per_s=20_000.0),
        "disk": ReplicaTier(capacity_tokens=1, load_tokens_per_s=4_000.0),
    }
    held = {"device": 2_000, "ram": 6_000, "disk": 10_000}
    # 4,000 from RAM at 20,000/s: 0.2 s; 4,000 from disk at 4,000/s: 1 s; 2,000 computed: 2 s.
    assert seconds(candidate("a", held, 12_000, tiers=tiers, **RATE)) == pytest.approx(3.2)


def test_loading_is_never_estimated_slower_than_computing() -> None:
    tiers = {"disk": ReplicaTier(capacity_tokens=1, load_tokens_per_s=10.0)}
    # 11,000 tokens count as computed at 1,000 per second, and 1,000 are computed.
    assert seconds(candidate("a", {"disk": 11_000}, 12_000, tiers=tiers, **RATE)) == 12.0


@pytest.mark.parametrize(
    ("tier", "expected"),
    # 8,000 tokens at 16, 4, 2, 1.5 and 1 times 1,000 per second, plus one computed token.
    [("ram", 0.501), ("disk", 2.001), ("shared", 4.001), ("objectstore", 5.334), ("tape", 8.001)],
)
def test_unmeasured_load_rate_is_a_multiple_of_the_prefill_rate(tier: str, expected: float) -> None:
    assert seconds(candidate("a", {tier: 8_000}, 8_000, **RATE)) == expected


def test_pending_tokens_of_this_router_are_computed_first() -> None:
    ahead = candidate("a", {}, 2_000, in_flight=3, pending_tokens=5_000, **RATE)
    assert seconds(ahead) == 7.0


def test_waiting_requests_of_other_clients_are_computed_first() -> None:
    # Of 5 waiting, 3 may be this router's; 2 more of 2,000 tokens, 5,000 pending and 2,000 own.
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
def test_allowed_output_tokens_do_not_count_as_pending(allowed: int) -> None:
    # 3 wait and 1 is in flight: 2 more of 1,000 tokens each, and 1,000 of this request.
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


def test_requests_not_yet_running_wait_if_pending_tokens_are_unknown() -> None:
    # 4 in flight and 1 running: 3 wait, each with the 1,000 tokens of this request.
    ahead = candidate("a", {}, 1_000, running=1, in_flight=4, in_flight_tokens=8_000, **RATE)
    assert seconds(ahead) == 4.0
    # This router has no requests in flight.
    assert seconds(candidate("a", {}, 1_000, waiting=2, **RATE)) == 3.0


def test_running_requests_add_running_seconds() -> None:
    busy = [candidate("a", {}, 1_000, running=50, **RATE), candidate("b", {}, 1_000, **RATE)]
    # 1.0 + 50 * 0.01 s against 1.0 s.
    assert scorer(running_seconds=0.01).score(request(), busy) == [pytest.approx(1 / 1.5), 1.0]


def test_score_is_the_least_cost_divided_by_the_cost() -> None:
    three = [
        candidate("a", {"device": 3_000}, 4_000, **RATE),  # 1 s
        candidate("b", {"device": 2_000}, 4_000, **RATE),  # 2 s
        candidate("c", {}, 4_000, **RATE),  # 4 s
    ]
    assert scorer().score(request(4_000), three) == [1.0, 0.5, 0.25]


def test_prefix_in_ram_wins_exactly_when_it_is_sooner() -> None:
    def best(pending: int) -> float:
        holder = candidate("a", {"ram": 16_000}, 16_000, pending_tokens=pending, **RATE)
        idle = candidate("b", {}, 16_000, pending_tokens=0, **RATE)
        return float(scorer().score(request(16_000), [holder, idle])[0])

    # Loading takes 1.001 s and computing 16 s, so waiting for up to 14,999 tokens pays off.
    assert best(14_990) == 1.0
    assert best(15_010) < 1.0


def test_compute_weight_weights_computing_over_waiting() -> None:
    # 3 s of waiting against 1.5 s of computing; with a weight of 1 computing wins.
    two = [
        candidate("a", {"device": 1_500}, 1_500, pending_tokens=3_000, **RATE),
        candidate("b", {}, 1_500, pending_tokens=0, **RATE),
    ]
    assert scorer().score(request(1_500), two) == [pytest.approx(1.5 / 3.001), 1.0]
    # With a weight of 3: 3 s + 3 * 0.001 s against 3 * 1.5 s.
    assert scorer(compute_weight=3.0).score(request(1_500), two) == [
        1.0,
        pytest.approx(3.003 / 4.5),
    ]
    assert PLUGIN.Parameters().compute_weight == 3.0


def test_extra_cost_uses_the_mean_rate_so_that_slow_replicas_are_used() -> None:
    # The mean rate is 1,500/s, so computing 1,500 tokens costs an extra 2 on both: 1.5 + 0.75 + 2
    # against 1.5 + 2. At their own rates it would be 1.5 + 3 * 0.75 against 3 * 1.5.
    two = [
        candidate("a", {}, 1_500, pending_tokens=3_000, prefill_tokens_per_s=2_000.0),
        candidate("b", {}, 1_500, pending_tokens=0, prefill_tokens_per_s=1_000.0),
    ]
    assert scorer(compute_weight=3.0).score(request(1_500), two) == [
        pytest.approx(3.5 / 4.25),
        1.0,
    ]


def test_missing_prefill_rate_is_the_mean_of_others_or_the_default() -> None:
    known = candidate("a", {}, 4_000, prefill_tokens_per_s=2_000.0)
    unknown = candidate("b", {"device": 2_000}, 4_000)
    # a takes 2 s; b computes 2,000 tokens at a's 2,000 per second: 1 s.
    both = scorer()
    assert both.score(request(4_000), [known, unknown]) == [0.5, 1.0]
    assert both.reason(request(4_000), unknown).startswith("1.000 s ")
    # The default is 8,000 per second.
    assert seconds(candidate("a", {}, 4_000)) == 0.5


@pytest.mark.parametrize("rate", [math.nan, math.inf, -1.0, 0.0])
def test_implausible_rates_are_ignored(rate: float) -> None:
    tiers = {"ram": ReplicaTier(capacity_tokens=1, load_tokens_per_s=rate)}
    lying = candidate("a", {"ram": 4_000}, 8_000, prefill_tokens_per_s=rate, tiers=tiers)
    assert scorer().score(request(8_000), [lying, candidate("b", {}, 8_000)]) == [
        1.0,
        pytest.approx((0.5 + 4_000 / 128_000) / 1.0),
    ]


def test_empty_prompt_and_no_candidates() -> None:
    assert scorer().score(request(0), [candidate("a", {}, 0)]) == [1.0]
    assert scorer().score(request(0), []) == []


def test_all_indexes_are_read_if_none_is_named() -> None:
    assert made(PLUGIN).score(request(), [candidate("a", {"ram": 16})]) == [1.0]


def test_reason_lists_the_terms_of_the_estimate() -> None:
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
def test_parameters_out_of_range_are_rejected(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        PLUGIN.Parameters(**wrong)
