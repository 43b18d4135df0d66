"""Real routers before stand-ins for engines: all requests are sent and counted, processes end."""

import sys
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from kvtier_bench.client import complete
from kvtier_bench.progress import Steps
from kvtier_bench.router import contest, engine_runs, engines
from kvtier_bench.router.contest import TIERED, RunningRouter
from kvtier_bench.router.engine_replicas import replicas
from kvtier_bench.router.engines import RouterPlan, check_all, compare, measure_engines, rotated
from kvtier_bench.router.traffic import Schedule
from kvtier_bench.server import ServerFailed
from tests.bench.conftest import WordEncoder
from tests.bench.router.test_traffic import small
from tests.router.learn.folder import make_folder

EXAMPLES = Path(__file__).parents[3] / "examples" / "router"


def test_rotation_makes_each_router_first_in_turn() -> None:
    routers = [RunningRouter(name, 1, None) for name in "abc"]  # type: ignore[arg-type]
    orders = ["".join(one.name for one in rotated(routers, by)) for by in range(4)]
    assert orders == ["abc", "bca", "cab", "abc"]


def test_missing_router_is_reported_before_the_rounds(tmp_path: Path) -> None:
    [router] = [RunningRouter("a", 1, None)]  # type: ignore[arg-type]
    check_all(["a"], [router], tmp_path)
    with pytest.raises(ServerFailed, match="b did not start"):
        check_all(["a", "b"], [router], tmp_path)


def test_small_plan_runs_every_request_through_every_router(
    tmp_path: Path, stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", ":".join([str(stand_in), *sys.path]))
    for module in (engines, engine_runs):
        monkeypatch.setattr(module, "SETTLE_S", 0.01)
    encode = WordEncoder()
    kept = []
    plan = RouterPlan(
        model=make_folder(tmp_path),
        traffic=small(),
        rounds=2,
        seed=1,
        scratch=tmp_path / "scratch",
        examples=EXAMPLES,
        peer=tmp_path / "none",
    )
    rows, details = measure_engines(
        plan, encode, encode.decode, Steps(Console(quiet=True), 4), kept.append
    )
    assert [len(each[0]) for each in kept] == [len(rows)] * 2
    judged = {row.name: row for row in rows}
    for ours in (contest.DEFAULT, TIERED):
        against = f"real replicas, {ours} against {contest.ROUND_ROBIN}: mean TTFT"
        assert judged[against].ratio is not None
        wrong = judged[
            f"real replicas, {ours}: requests that failed, or were answered otherwise than asked"
        ]
        assert wrong.met, wrong
    for runs in details["runs"].values():
        assert [sum(run["by_replica"]) for run in runs] == [small().requests] * 2
    [first, _] = details["runs"][contest.ROUND_ROBIN]
    assert first["by_replica"] == [3, 3]
    assert len(msgspec.json.encode(details)) > 1_000


def test_compare_counts_answers_that_differ_from_the_replicas_own(
    tmp_path: Path, stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = WordEncoder()
    arrivals = Schedule(small(), encode, encode.decode, 1, 60.0).edition(0)[:2]
    asked: list[str] = []

    def garbled(endpoint: object, text: str, output_len: int) -> object:
        found = complete(endpoint, text, output_len)  # type: ignore[arg-type]
        asked.append(text)
        # Of five requests for a prompt, the last one goes through the router.
        return msgspec.structs.replace(found, text="?") if len(asked) % 5 == 0 else found

    with replicas(tmp_path, small(), tmp_path) as started:
        port = started[0].server.endpoint.port
        router = RunningRouter("a", port, None)  # type: ignore[arg-type]
        assert compare(started, [router], arrivals, 4) == {"a": 0}
        monkeypatch.setattr(engines, "complete", garbled)
        assert compare(started, [router], arrivals, 4) == {"a": 2}
