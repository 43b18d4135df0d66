"""Fixed seeds in every run; `simulate` takes any seed and length for longer hunts."""

import pytest

from tests.cache.simulation import simulate


@pytest.mark.parametrize("seed", range(20))
def test_survives_faults(seed: int) -> None:
    report = simulate(seed)
    assert report.served_requests > 0
    assert report.faults > 0


def test_what_the_seeds_meet() -> None:
    """A simulation in which nothing happens proves nothing."""
    reports = [simulate(seed, operations=300) for seed in range(12)]
    assert all(report.hit_blocks[0] and report.evicted_blocks[0] for report in reports)
    for count in ("corrupt_blocks", "expired_requests", "aborted_requests", "restarts", "clears"):
        assert any(getattr(report, count) for report in reports), count
    assert sum(report.hit_blocks[1] > 0 for report in reports) >= 6
    assert sum(report.evicted_blocks[1] > 0 for report in reports) >= 4


def test_same_seed_same_end() -> None:
    assert simulate(5) == simulate(5)
    assert simulate(5).digest != simulate(6).digest


def test_without_faults_nothing_is_corrupt() -> None:
    report = simulate(4, fault_rate=0.0)
    assert report.faults == report.corrupt_blocks == 0
