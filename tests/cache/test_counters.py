from kvtier.cache.counters import CacheCounters, TierCounters


def test_durations_are_given_once() -> None:
    counters = CacheCounters([TierCounters()])
    counters.durations.append((1, "read", 0.5))
    assert counters.take_durations() == [(1, "read", 0.5)]
    assert counters.take_durations() == []
