"""Rates measured on simulated replicas whose true rate is known: TRUE tokens per second."""

import math
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.router.learn.rates import HALF_S, WINDOW_S, PeakRate, PrefillRate, Prefills

TRUE = 10_000.0


class Replica:
    """A replica that counts like vLLM: when a request ends, with all of its own seconds."""

    def __init__(self, *, tells_latency: bool = True) -> None:
        self.tokens = self.requests = self.seconds = self.latency_s = self.now_s = 0.0
        self.tells_latency = tells_latency
        self.rate = PrefillRate()

    def batch(
        self, count: int, tokens: float, *, other_s: float = 0.0, decode_s: float = 0
    ) -> float:
        """Compute a batch of prompts, decode them, and return the rate measured afterwards."""
        busy_s = count * tokens / TRUE + other_s
        self.now_s += busy_s
        self.tokens += count * tokens
        self.requests += count
        self.seconds += count * busy_s
        self.latency_s += count * (busy_s + decode_s)
        return self.look()

    def look(self) -> float:
        latency_s = self.latency_s if self.tells_latency else None
        seen = Prefills(self.tokens, self.requests, self.seconds, latency_s)
        return self.rate.update(seen, self.now_s)


def after(rates: Iterable[float]) -> float:
    return list(rates)[-1]


def test_prefill_rate_of_single_prompts_is_tokens_per_second() -> None:
    replica = Replica()
    assert replica.look() == 0
    assert replica.batch(1, 4000) == pytest.approx(TRUE)


def test_batched_prefills_do_not_lower_rate() -> None:
    replica = Replica()
    replica.look()
    replica.batch(1, 4000)
    assert after(replica.batch(8, 1000) for _ in range(60)) == pytest.approx(TRUE, rel=0.12)


@pytest.mark.parametrize("count", [2, 4, 16])
def test_prefills_that_always_overlap_do_not_lower_rate(count: int) -> None:
    replica = Replica()
    replica.look()
    assert after(replica.batch(count, 2000) for _ in range(120)) == pytest.approx(TRUE, rel=0.21)


def test_rate_without_latencies_is_too_low_if_prefills_always_overlap() -> None:
    replica = Replica(tells_latency=False)
    replica.look()
    assert after(replica.batch(4, 2000) for _ in range(120)) == pytest.approx(TRUE / 4)


def test_prefills_batched_with_decoding_count_until_better_measurement() -> None:
    replica = Replica()
    replica.look()
    assert replica.batch(1, 4000, other_s=0.4) == pytest.approx(TRUE / 2)
    for _ in range(20):
        best = replica.batch(1, 4000)
    assert best == pytest.approx(TRUE, rel=0.05)
    assert after(replica.batch(1, 4000, other_s=0.4) for _ in range(20)) > 0.9 * TRUE


def test_rate_falls_when_replica_becomes_slow() -> None:
    rate = PeakRate()
    rate.update(0, 0, 0.0)
    assert rate.update(20_000, 2, 1.0) == pytest.approx(TRUE)
    slow = [rate.update(20_000 + 1000 * n, 2 + n, 1.0 + n) for n in range(1, int(HALF_S) + 1)]
    assert slow[0] > 0.99 * TRUE
    assert 0.5 * TRUE < slow[-1] < 0.6 * TRUE


@given(
    st.lists(
        st.tuples(st.integers(1, 16), st.floats(300, 9000), st.floats(0, 2), st.floats(0, 20)),
        max_size=60,
    )
)
def test_rate_never_exceeds_true_rate(batches) -> None:
    replica = Replica()
    replica.look()
    for count, tokens, other_s, decode_s in batches:
        assert replica.batch(count, tokens, other_s=other_s, decode_s=decode_s) <= TRUE * 1.001


def test_requests_that_end_together_do_not_raise_rate() -> None:
    replica = Replica()
    replica.look()
    replica.now_s += 30.0
    replica.tokens, replica.requests = 40_000.0, 10.0
    replica.seconds, replica.latency_s = 4.0, 290.0
    assert replica.look() == pytest.approx(TRUE)
    replica.now_s += WINDOW_S
    assert replica.look() == pytest.approx(TRUE)


def test_prefills_before_window_do_not_raise_rate() -> None:
    replica = Replica()
    replica.look()
    replica.tokens, replica.requests, replica.seconds, replica.latency_s = 50_000, 10, 50, 100
    assert max(replica.batch(10, 5000) for _ in range(20)) <= TRUE * 1.001


@pytest.mark.parametrize("wild", [1e308, 1e30, -1e308])
def test_implausible_counters_do_not_change_rate(wild: float) -> None:
    replica = Replica()
    replica.look()
    replica.tokens = wild
    replica.now_s += 1.0
    replica.seconds += 0.5
    assert replica.look() == 0
    replica.tokens = 0.0
    replica.look()
    found = [replica.batch(1, 4000) for _ in range(30)]
    assert all(math.isfinite(rate) for rate in found)
    assert found[-1] == pytest.approx(TRUE)


@pytest.mark.parametrize("which", ["tokens", "requests", "seconds", "latency_s", "all"])
@pytest.mark.parametrize(
    "wild",
    [
        *([math.nan], [math.inf], [-math.inf], [-1.0], [1e300]),
        [1e300, 1.7e308, -1.7e308, 1.7e308],
    ],
)
def test_missing_counters_are_skipped_and_later_ones_count_at_once(wild, which) -> None:
    replica = Replica()
    replica.look()
    replica.batch(1, 4000)
    names = ("tokens", "requests", "seconds", "latency_s")
    poisoned = names if which == "all" else (which,)
    good = {name: getattr(replica, name) for name in names}
    for value in wild:
        for name in poisoned:
            setattr(replica, name, value)
        replica.now_s += 2 * WINDOW_S
        assert replica.look() == pytest.approx(TRUE)
    for name, value in good.items():
        setattr(replica, name, value)
    assert [replica.batch(1, 4000) for _ in range(3)] == pytest.approx([TRUE] * 3)
    replica.now_s += 2 * WINDOW_S
    assert replica.batch(1, 4000) == pytest.approx(TRUE)


@pytest.mark.parametrize("wild", [math.nan, math.inf, -1.0, 1e300])
def test_rate_is_always_finite(wild: float) -> None:
    rate = PeakRate()
    rate.update(0, 0, 0.0)
    assert rate.update(wild, wild, 1.0) == 0
    rate.record(wild, 2.0)
    assert rate.update(0, 0, 3.0) == 0
    assert rate.update(TRUE, 1.0, 4.0) == pytest.approx(TRUE)


def test_decreased_counters_start_new_interval() -> None:
    replica = Replica()
    replica.look()
    replica.batch(4, 2000)
    replica.tokens = replica.requests = replica.seconds = replica.latency_s = 0.0
    replica.look()
    assert after(replica.batch(4, 2000) for _ in range(60)) == pytest.approx(TRUE, rel=0.21)
    assert replica.rate.update(Prefills(None, None, None, None), replica.now_s) > 0
