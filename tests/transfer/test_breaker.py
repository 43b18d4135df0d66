import pytest

from kvtier.transfer.breaker import FAILURES, MAX_PAUSE_S, PAUSE_S, Breaker, BreakerState


def opened(now_s: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(FAILURES):
        assert breaker.admits(now_s)
        breaker.failed(now_s)
    return breaker


def test_closed_breaker_admits_all_calls() -> None:
    breaker = Breaker()
    assert all(breaker.admits(0.0) for _ in range(100))
    assert breaker.state(0.0) is BreakerState.CLOSED


def test_breaker_opens_after_consecutive_failures_only() -> None:
    breaker = Breaker()
    for _ in range(10 * FAILURES):
        breaker.failed(0.0)
        breaker.succeeded()
    assert breaker.state(0.0) is BreakerState.CLOSED
    assert opened().state(0.0) is BreakerState.OPEN
    assert not opened().admits(PAUSE_S / 2)


def test_half_open_breaker_admits_one_probe() -> None:
    breaker = opened()
    assert breaker.state(PAUSE_S) is BreakerState.HALF_OPEN
    assert breaker.admits(PAUSE_S)
    assert not breaker.admits(PAUSE_S), "a second probe was admitted"
    breaker.succeeded()
    assert breaker.state(PAUSE_S) is BreakerState.CLOSED
    assert breaker.admits(PAUSE_S)


def test_failed_probe_doubles_the_pause() -> None:
    breaker, now_s, pause_s = opened(), 0.0, PAUSE_S
    for _ in range(10):
        now_s += pause_s
        assert not breaker.admits(now_s - 1e-6)
        assert breaker.admits(now_s)
        breaker.failed(now_s)
        pause_s = min(2 * pause_s, MAX_PAUSE_S)
    assert pause_s == MAX_PAUSE_S
    assert breaker.admits(now_s + MAX_PAUSE_S)
    breaker.succeeded()
    for _ in range(FAILURES):
        breaker.failed(now_s)
    assert breaker.admits(now_s + PAUSE_S), "success must reset the pause"


@pytest.mark.parametrize("is_probe", [False, True])
def test_hanging_call_opens_breaker_at_once(is_probe: bool) -> None:
    breaker, now_s = (opened(), PAUSE_S) if is_probe else (Breaker(), 0.0)
    assert breaker.admits(now_s)
    breaker.hung(now_s + 5.0)
    assert breaker.state(now_s + 5.0) is BreakerState.OPEN
    assert not breaker.admits(now_s + 5.0)


def test_old_hanging_call_does_not_prolong_the_pause() -> None:
    breaker = Breaker()
    breaker.hung(0.0)
    breaker.hung(PAUSE_S / 2)
    assert breaker.admits(PAUSE_S)
