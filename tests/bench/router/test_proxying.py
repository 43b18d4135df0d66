"""The rows of the HTTP benchmark, and a small run that checks everything but the speed."""

import sys
from pathlib import Path

import pytest
from rich.console import Console

from kvtier_bench.progress import Steps
from kvtier_bench.router import contest, proxying
from kvtier_bench.router.load import LoadOutcome
from kvtier_bench.router.proxying import (
    CHUNKS,
    DIRECT,
    WHOLE,
    IdleStreams,
    RoundSample,
    idle_rows,
    rows,
)


def sample(cpu_s: float, p50_s: float = 0.01, wrong: int = 0) -> RoundSample:
    return RoundSample(
        LoadOutcome(requests=1000, wrong=wrong, failed=0, seconds=1, p50_s=p50_s), cpu_s
    )


def test_cpu_target_is_relative_to_the_peer() -> None:
    samples = {}
    for pattern in (WHOLE, CHUNKS):
        samples[pattern, DIRECT] = [sample(0, 0.001)] * 3
        samples[pattern, contest.DEFAULT] = [
            sample(0.06, 0.0015),
            sample(0.3),
            sample(0.06, 0.0015),
        ]
        samples[pattern, contest.PEER_CACHE_AWARE] = [sample(0.05)] * 3
    found = {row.name: row for row in rows(samples)}
    cpu = found[f"{contest.DEFAULT}, {WHOLE}: CPU a request"]
    assert (round(cpu.value), round(cpu.ratio or 0, 2), cpu.met) == (60, 1.2, True)
    assert found[f"{contest.DEFAULT}, {CHUNKS}: CPU a request"].met is False
    assert found[f"{contest.PEER_CACHE_AWARE}, {WHOLE}: CPU a request"].met is None
    added = found[f"{contest.DEFAULT}, {CHUNKS}: added p50"]
    assert (round(added.value, 2), added.met) == (0.5, True)
    assert found[f"{contest.DEFAULT}, {WHOLE}: added p50"].target is None


def test_wrong_answer_misses_the_target() -> None:
    samples = {
        (pattern, name): [sample(0.1, wrong=name == contest.DEFAULT)]
        for pattern in (WHOLE, CHUNKS)
        for name in (DIRECT, contest.DEFAULT)
    }
    direct, ours = rows(samples)[-2:]
    assert (direct.value, direct.met) == (0, None)
    assert (ours.value, ours.met) == (2, False)


def test_idle_streams_that_never_began_are_errors() -> None:
    held = LoadOutcome(requests=90, wrong=0, failed=0, seconds=1)
    errors, memory = idle_rows({contest.DEFAULT: IdleStreams(held, 100, 900_000)})
    assert (errors.value, errors.met) == (10, False)
    assert (memory.value, memory.met) == (10_000, True)


def test_small_run_measures_and_checks_every_contestant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    monkeypatch.setattr(proxying, "_PRIME_S", 0.05)
    found, details = proxying.measure_proxying(
        tmp_path,
        Steps(Console(quiet=True), 2),
        peer=tmp_path / "none",
        rounds=1,
        seconds=0.1,
        streams=20,
    )
    judged = {row.name: row for row in found}
    wrong = judged[f"{contest.DEFAULT}: answers that failed, or differed by a byte"]
    assert wrong.met, wrong
    assert judged[f"{contest.DEFAULT}, 20 idle streams: errors"].met
    assert len(details["rounds"]) == 6
