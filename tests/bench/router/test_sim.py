from pathlib import Path

import pytest
from rich.console import Console

from kvtier_bench.progress import Steps
from kvtier_bench.router.sim import Simulation, SimulationResult, measure_sim, policies, sim_rows
from kvtier_bench.router.sim_trace import SegmentTokens, TraceShape, make_sessions

EXAMPLES = Path("examples/router")
SHAPE = TraceShape(sessions=40, groups=4, arrivals_s=10.0)
QUIET = Steps(Console(quiet=True), 1)


def result(name: str, seed: int = 1) -> SimulationResult:
    sessions = list(make_sessions(SHAPE, seed))
    return Simulation(policies(EXAMPLES)[name], sessions, SegmentTokens(), 4).run()


def test_simulation_serves_every_request_once_and_repeats_by_seed() -> None:
    turns = [turn for one in make_sessions(SHAPE, 1) for turn in one.turns]
    served = result("round-robin")
    assert len(served.ttft_s) == len(turns)
    assert served.prompt_tokens == sum(turn.tokens for turn in turns)
    assert served == result("round-robin")
    assert served != result("round-robin", seed=2)


@pytest.mark.parametrize("name", ["session-affinity", "prefix-cache", "expected-ttft"])
def test_session_returns_to_the_replica_with_its_prefix(name: str) -> None:
    found, spread = result(name), result("round-robin")
    hits = found.device_tokens + found.ram_tokens
    assert hits > 1.2 * (spread.device_tokens + spread.ram_tokens)
    assert found.mean_s < spread.mean_s


def test_target_of_expected_ttft_is_to_beat_every_other_profile() -> None:
    results = {
        "round-robin": SimulationResult([1.0, 2.0], 10, 1, 2),
        "expected-ttft": SimulationResult([0.5, 3.0], 10, 1, 2),
    }
    found = {row.name: row for row in sim_rows(results)}
    mean = found["simulated, expected-ttft: mean time to first token"]
    assert (mean.ratio, mean.met) == (pytest.approx(1750 / 1500), False)
    assert found["simulated, round-robin: p99 time to first token"].target is None
    assert "device 10.0%, RAM 20.0%" in mean.note


def test_table_shows_every_profile() -> None:
    rows, details, table = measure_sim(EXAMPLES, QUIET, shape=SHAPE, replicas=4)
    assert table.row_count == len(policies(EXAMPLES))
    assert len(rows) == 2 * table.row_count
    assert (details["seed"], details["replicas"]) == (1, 4)
