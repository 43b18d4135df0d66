from kvtier.clock import VirtualClock
from kvtier.evictor.pace import SLEEP_MAX_S, RateWaiter


def test_rate_waiter_without_limit_never_sleeps() -> None:
    clock = VirtualClock()
    pace = RateWaiter(None, clock)
    assert all(pace.wait() for _ in range(10_000))
    assert clock.now_s() == 0


def test_rate_waiter_keeps_rate() -> None:
    for rate in (0.5, 7.0, 5000.0):
        clock = VirtualClock(100.0)
        pace = RateWaiter(rate, clock)
        done = 0
        while done < 20 * rate:
            done += pace.wait()
        assert 0.9 * 20 <= clock.now_s() - 100 <= 1.1 * 20 + 2


def test_rate_waiter_sleeps_in_short_steps() -> None:
    clock = VirtualClock()
    pace = RateWaiter(0.01, clock)
    assert pace.wait()
    waits = 0
    while not pace.wait():
        waits += 1
        assert clock.now_s() <= waits * SLEEP_MAX_S
    assert waits > 90


def test_rate_waiter_saves_no_idle_time() -> None:
    clock = VirtualClock()
    pace = RateWaiter(10, clock)
    pace.wait()
    clock.advance(1000)
    for _ in range(100):
        while not pace.wait():
            pass
    assert clock.now_s() >= 1009
