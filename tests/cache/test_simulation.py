"""The simulation with fixed seeds; `simulate` takes any seed and length for longer searches."""

import pytest

from tests.cache.simulation import simulate


@pytest.mark.parametrize("seed", range(6))
def test_cache_survives_faults(seed: int) -> None:
    report = simulate(seed)
    assert report.served_requests > 0
    assert report.faults > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6, 40))
def test_cache_survives_faults_of_more_seeds(seed: int) -> None:
    report = simulate(seed)
    assert report.served_requests > 0
    assert report.faults > 0


def test_seeds_cover_every_kind_of_event() -> None:
    """A simulation in which nothing happens would prove nothing."""
    reports = [simulate(seed, operations=300) for seed in range(12)]
    assert all(report.hit_blocks[0] and report.evicted_blocks[0] for report in reports)
    for count in ("corrupt_blocks", "expired_requests", "aborted_requests", "restarts", "resets"):
        assert any(getattr(report, count) for report in reports), count
    assert sum(report.hit_blocks[1] > 0 for report in reports) >= 6
    assert sum(report.evicted_blocks[1] > 0 for report in reports) >= 4


def test_simulation_of_same_seed_gives_same_report() -> None:
    assert simulate(5) == simulate(5)
    assert simulate(5).digest != simulate(6).digest


def test_cache_without_faults_reports_no_corruption() -> None:
    report = simulate(4, fault_rate=0.0)
    assert report.faults == report.corrupt_blocks == 0
