import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from kvtier.clock import VirtualClock
from kvtier.errors import InvalidSettings
from kvtier_bench.engine import EnginePlan, Measurements, measure, server_settings
from kvtier_bench.lineup import ALONE, KVTIER_DISK, LIMIT, LIMIT_BLOCKS, NATIVE, lineup
from kvtier_bench.progress import Steps
from kvtier_bench.workload import Encode, Workload


@pytest.fixture
def plan(small: Workload, tmp_path: Path) -> EnginePlan:
    return EnginePlan(
        model=Path("model"),
        workloads=[small],
        contestants=[ALONE, KVTIER_DISK, LIMIT],
        rounds=2,
        seed=1,
        scratch=tmp_path / "scratch",
        peers=tmp_path / "peers",
    )


def test_plan_runs_every_contestant_in_every_round(
    stand_in: Path, plan: EnginePlan, encode: Encode
) -> None:
    kept: list[int] = []
    log = io.StringIO()
    steps = Steps(Console(file=log), total=6)

    def keep(measurements: Measurements) -> None:
        kept.append(len(measurements.runs["small"][ALONE]))

    measurements = measure(plan, encode, steps, keep, VirtualClock())
    assert kept == [1, 2]
    assert [title for title, _ in measurements.medians("small")] == [
        lineup(Path())[name].title for name in (ALONE, KVTIER_DISK, LIMIT)
    ]
    written = measurements.report()
    assert len(written.details["runs"]["small"][KVTIER_DISK]) == 2
    rows = {row.name: row for row in written.rows}
    assert rows[f"small/{KVTIER_DISK}/outputs_different"].value == 0
    assert f"small/{KVTIER_DISK}/cpu_per_request_against_alone" in rows
    assert str(plan.scratch) not in msgspec.json.encode(written).decode()
    # Only the servers' logs are left, and no disk tier.
    assert {each.suffix for each in plan.scratch.iterdir()} == {".log"}


def test_runs_start_with_empty_caches(stand_in: Path, plan: EnginePlan, encode: Encode) -> None:
    twice = msgspec.structs.replace(plan, contestants=[KVTIER_DISK])
    steps = Steps(Console(file=io.StringIO()), 2)
    measurements = measure(twice, encode, steps, lambda _: None, VirtualClock())
    # Caches are reset once for each run, in addition to the run's own salt.
    log = (plan.scratch / f"{KVTIER_DISK}.log").read_text()
    assert log.count("/reset_prefix_cache?reset_external=true") == 1
    for run in measurements.runs["small"][KVTIER_DISK]:
        assert run.summary.hit_rates["ram"] == run.summary.hit_rates["disk"] == 0.0


def test_runs_of_a_round_have_orders_of_their_own(
    stand_in: Path, plan: EnginePlan, small: Workload, encode: Encode
) -> None:
    thrice = msgspec.structs.replace(small, runs_per_round=3)
    changed = msgspec.structs.replace(plan, workloads=[thrice], contestants=[ALONE], rounds=1)
    steps = Steps(Console(file=io.StringIO()), 1)
    runs = measure(changed, encode, steps, lambda _: None, VirtualClock()).runs["small"][ALONE]
    assert len({tuple(run.texts) for run in runs}) == 3
    assert runs[0].texts == runs[1].texts == runs[2].texts


def test_contestants_differ_in_connector_device_cache_and_peers_only(plan: EnginePlan) -> None:
    everyone = lineup(Path("disk"))
    alone, limit, native = (server_settings(plan, everyone[n]) for n in (ALONE, LIMIT, NATIVE))
    assert alone.device_blocks == 10
    same_but_blocks = msgspec.structs.replace(limit, device_blocks=10, log=alone.log)
    assert same_but_blocks == alone
    assert native.python_path == (plan.peers.resolve(),)
    assert alone.python_path == ()


def test_unfair_plan_is_refused(plan: EnginePlan, small: Workload) -> None:
    larger = msgspec.structs.replace(small, name="larger", device_blocks=20)
    huge = msgspec.structs.replace(small, groups=LIMIT_BLOCKS)
    for changes, said in [
        ({"contestants": ["nobody"]}, "unknown contestant 'nobody'"),
        ({"workloads": [small, larger]}, r"device_blocks are \[10, 20\]"),
        ({"workloads": [huge]}, "the limit row has only"),
    ]:
        with pytest.raises(InvalidSettings, match=said):
            msgspec.structs.replace(plan, **changes).check()
