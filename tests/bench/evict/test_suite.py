from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from kvtier_bench.evict.suite import DISCOVERY, FIND, KVTIER, EvictionResult, compare, run
from kvtier_bench.processes import CommandCost
from kvtier_bench.rows import read_report


def result(seconds: float, hit_rate: float, calls: float | None) -> EvictionResult:
    left = np.array([True, False])
    return EvictionResult(
        CommandCost(seconds, seconds, int(seconds * 1e6), ""), left, hit_rate, calls
    )


def test_only_the_hit_rate_has_a_target() -> None:
    others = {FIND: result(1, 0.5, 2.0), DISCOVERY: result(4, 0.9, 8.0)}
    rows = {row.name: row for row in compare({KVTIER: result(2, 0.8, 4.0), **others})}
    assert len(rows) == 10
    assert (rows["time, against find -delete"].ratio, rows["time, against find -delete"].met) == (
        2.0,
        None,
    )
    assert rows["CPU, against discovery order"].ratio == 0.5
    assert rows["CPU, against discovery order"].met is None
    assert rows["hit rate left, against find -delete"].met
    assert rows["hit rate left, against discovery order"].met is False
    without = compare({KVTIER: result(2, 0.8, None), **others})
    assert len(without) == 8


def test_small_eviction_run_passes_its_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run everything small, and check the files and the hit rates, but not the cost."""
    monkeypatch.setenv("PYTHONPATH", ":".join(__import__("sys").path))
    path = tmp_path / "evict.json"
    rows = run(path, tmp_path / "scratch", Console(quiet=True), files=1500, seed=2)
    checks = rows[-4:]
    assert all(row.met for row in checks), checks
    told = read_report(path)
    assert told.rows == rows
    removed = [one["removed"] for name, one in told.details.items() if isinstance(one, dict)]
    assert 500 < min(removed) <= max(removed) <= min(removed) + 5
    rates = {name: told.details[name]["hit_rate"] for name in (KVTIER, FIND)}
    assert rates[KVTIER] > rates[FIND] + 0.1
    assert not list((tmp_path / "scratch").iterdir())
