"""Reading no faster than asked, on a clock that is moved by the waiting itself."""

import pytest

from kvtier.clock import VirtualClock
from kvtier.inspection.workers import Stopped, Throttle


def test_reading_takes_as_long_as_the_rate_says() -> None:
    clock = VirtualClock()
    pace = Throttle(100, clock)
    for _ in range(10):
        pace.spend(50)
    assert clock.now_s() == pytest.approx(4.5), "what is read last is waited for by the next"
    pace.spend(0)
    assert clock.now_s() == pytest.approx(5.0)


def test_time_in_which_nothing_was_read_is_not_saved_up() -> None:
    clock = VirtualClock()
    pace = Throttle(100, clock)
    clock.advance(60)
    for _ in range(3):
        pace.spend(100)
    assert clock.now_s() == pytest.approx(62.0)


def test_without_a_rate_nobody_waits() -> None:
    clock = VirtualClock()
    Throttle(None, clock).spend(1 << 60)
    assert clock.now_s() == 0.0


def test_a_stop_ends_the_waiting() -> None:
    clock = VirtualClock()
    pace = Throttle(1, clock)
    pace.spend(1_000_000)

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
    assert not pace.stopped
    with pytest.raises(Stopped):
        slow.spend(0)
