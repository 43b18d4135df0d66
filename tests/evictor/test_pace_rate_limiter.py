"""The rate limiter: how long each claim has to wait."""

import pytest

from kvtier.clock import VirtualClock
from kvtier.evictor.pace import RateLimiter


def test_rate_limiter_without_limit_never_waits() -> None:
    assert RateLimiter(None, VirtualClock()).claim(1 << 60) == 0.0


def test_rate_limiter_claims_wait_for_earlier_claims() -> None:
    rate = RateLimiter(100, VirtualClock(7.0))
    assert [rate.claim(50) for _ in range(4)] == pytest.approx([0.0, 0.5, 1.0, 1.5])


def test_rate_limiter_counts_time_that_passed() -> None:
    clock = VirtualClock()
    rate = RateLimiter(100, clock)
    rate.claim(200)
    clock.advance(1.5)
    assert rate.claim(100) == pytest.approx(0.5)


@pytest.mark.parametrize(("burst_s", "at_once"), [(0.0, 1), (0.5, 6)])
def test_rate_limiter_saves_idle_time_only_as_a_burst(burst_s: float, at_once: int) -> None:
    clock = VirtualClock()
    rate = RateLimiter(10, clock, burst_s)
    clock.advance(1000)
    waits = [rate.claim() for _ in range(20)]
    assert waits[:at_once] == pytest.approx([0.0] * at_once)
    assert waits[at_once] == pytest.approx(0.1)
    assert waits[-1] == pytest.approx((20 - at_once) / 10)
