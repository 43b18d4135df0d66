"""The throttle's rate and stop, with a clock that advances while it sleeps."""

import pytest

from kvtier.clock import VirtualClock
from kvtier.inspection.workers import Stopped, Throttle


def test_throttle_spends_at_the_given_rate() -> None:
    clock = VirtualClock()
    throttle = Throttle(100, clock)
    for _ in range(10):
        throttle.spend(50)
    assert clock.now_s() == pytest.approx(4.5), "the wait for the last bytes falls to the next read"
    throttle.spend(0)
    assert clock.now_s() == pytest.approx(5.0)


def test_throttle_does_not_save_up_idle_time() -> None:
    clock = VirtualClock()
    throttle = Throttle(100, clock)
    clock.advance(60)
    for _ in range(3):
        throttle.spend(100)
    assert clock.now_s() == pytest.approx(62.0)


def test_throttle_without_a_rate_never_waits() -> None:
    clock = VirtualClock()
    Throttle(None, clock).spend(1 << 60)
    assert clock.now_s() == 0.0


def test_throttle_stop_ends_the_waiting() -> None:
    clock = VirtualClock()
    throttle = Throttle(1, clock)
    throttle.spend(1_000_000)

    class StopsAfterAMoment(VirtualClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            slow.stop()

    impatient = StopsAfterAMoment()
    slow = Throttle(1, impatient)
    slow.spend(1_000_000)
    with pytest.raises(Stopped):
        slow.spend(1)
    assert impatient.now_s() < 1.0
    assert slow.stopped
    assert not throttle.stopped
    with pytest.raises(Stopped):
        slow.spend(0)
