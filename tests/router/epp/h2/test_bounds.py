from kvtier.clock import VirtualClock
from kvtier.router.epp.h2.bounds import Allowance, Limits, Patience


def test_what_all_keep_together_is_bounded() -> None:
    allowance = Allowance(10)
    assert allowance.take(6)
    assert not allowance.take(5)
    assert allowance.take(4)
    assert allowance.take(-3)
    allowance.give(7)
    assert allowance.taken_bytes == 0


def test_patience_wears_out_by_frames_and_comes_back_with_time() -> None:
    clock = VirtualClock()
    patience = Patience(Limits(frames_burst=3, frames_per_s=2.0), clock)
    assert [patience.wear() for _ in range(4)] == [True, True, True, False]
    clock.advance(1.0)
    assert [patience.wear() for _ in range(3)] == [True, True, False]
    clock.advance(1000.0)
    assert [patience.wear() for _ in range(4)] == [True, True, True, False]


def test_what_costs_more_wears_more() -> None:
    clock = VirtualClock()
    patience = Patience(Limits(frames_burst=10, frames_per_s=2.0), clock)
    assert [patience.wear(6), patience.wear(6), patience.wear(4)] == [True, False, True]
    clock.advance(3.0)
    assert patience.wear(6)


def test_whoever_stays_below_the_rate_is_never_cut_off() -> None:
    clock = VirtualClock()
    patience = Patience(Limits(frames_burst=3, frames_per_s=2.0), clock)
    for _ in range(1000):
        clock.advance(0.5)
        assert patience.wear()
