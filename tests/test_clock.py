import pytest

from kvtier import clock


def test_monotonic_clock_sleeps_at_least_as_long_as_told() -> None:
    real = clock.MonotonicClock()
    start_s = real.now_s()
    real.sleep(0.002)
    assert real.now_s() - start_s >= 0.002


def test_virtual_clock_stands_still_until_advanced() -> None:
    virtual = clock.VirtualClock(5.0)
    assert (virtual.now_s(), virtual.now_s()) == (5.0, 5.0)
    virtual.sleep(3_600.0)
    virtual.advance(0.5)
    assert virtual.now_s() == 3_605.5


def test_virtual_clock_does_not_go_back() -> None:
    virtual = clock.VirtualClock()
    with pytest.raises(ValueError, match="does not go back"):
        virtual.advance(-1.0)
    assert virtual.now_s() == 0.0


def test_seeded_gives_same_numbers_for_same_seed() -> None:
    first, second, other = clock.seeded(7), clock.seeded(7), clock.seeded(8)
    numbers = [first.random() for _ in range(10)]
    assert numbers == [second.random() for _ in range(10)]
    assert numbers != [other.random() for _ in range(10)]


def test_unique_ids_are_32_hex_digits_and_differ() -> None:
    ids = {clock.unique_id() for _ in range(1_000)}
    assert len(ids) == 1_000
    assert all(len(i) == 32 and int(i, 16) >= 0 for i in ids)


def test_wall_and_finest_timer_advance() -> None:
    assert clock.wall_s() > 1_700_000_000  # seconds since the epoch, not since boot
    start_s = clock.perf_s()
    assert clock.perf_s() >= start_s
