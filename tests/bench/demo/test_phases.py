import io
from pathlib import Path

import pytest
from rich.console import Console

from kvtier_bench.demo import phases
from kvtier_bench.demo.findings import Findings, agreement_rows
from kvtier_bench.demo.phases import Demo, drop_cached_pages, first_of_each_group
from kvtier_bench.demo.sizing import AIM_S, LIMIT_S, SHAPES, Shape
from kvtier_bench.progress import PhaseScreen
from kvtier_bench.workload import Encode, WorkloadPrompt
from tests.bench.demo.machine import Machine


@pytest.fixture
def slow_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "first_shape", lambda dtype: SHAPES[2])


@pytest.fixture
def fast_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "first_shape", lambda dtype: SHAPES[0])


def run(machine: Machine, encode: Encode, folder: Path) -> Findings:
    screen = PhaseScreen(Console(file=io.StringIO()), list(phases.PHASES.values()), AIM_S)
    demo = Demo(Path("model"), encode, screen, folder, AIM_S, machine.clock, machine.open_engine)
    demo.run(folder)
    return demo.findings


def running_shape(machine: Machine) -> Shape:
    blocks = {settings.device_blocks for settings in machine.started[-3:]}
    (shape,) = [each for each in SHAPES if {each.device_blocks} == blocks]
    return shape


def test_fast_machine_shows_everything_within_aim(
    fast_cpu: None, encode: Encode, tmp_path: Path
) -> None:
    machine = Machine()
    findings = run(machine, encode, tmp_path)
    assert machine.clock.now_s() <= AIM_S
    assert list(findings.met) == ["cold", "ram", "disk", "shared"]
    assert findings.left_out == []
    assert findings.prompt_tokens > 3000
    for tier in ("ram", "disk", "shared"):
        assert findings.met[tier].served_share > 0.9
        assert findings.met[tier].ttft_s < findings.met["cold"].ttft_s / 10
        assert len(findings.texts[tier]) == 4  # the prompt, and three of the load
    assert findings.loads["tiers"].tokens_per_s > findings.loads["alone"].tokens_per_s
    assert len(machine.started) == 4


@pytest.mark.parametrize("speed", [0.3, 0.1, 0.07])
@pytest.mark.parametrize("import_s", [25.0, 60.0])
def test_slow_machine_shows_all_tiers_within_aim(
    slow_cpu: None, encode: Encode, tmp_path: Path, speed: float, import_s: float
) -> None:
    machine = Machine(speed=speed, decode_speed=0.3, import_s=import_s, start_s=12.0)
    findings = run(machine, encode, tmp_path)
    assert machine.clock.now_s() <= AIM_S + 10
    assert list(findings.met) == ["cold", "ram", "disk", "shared"]
    assert findings.met["ram"].ttft_s < findings.met["cold"].ttft_s / 2


def test_slow_machine_has_time_for_load(slow_cpu: None, encode: Encode, tmp_path: Path) -> None:
    findings = run(Machine(speed=0.15, decode_speed=0.3), encode, tmp_path)
    assert findings.loads["tiers"].tokens_per_s > findings.loads["alone"].tokens_per_s


@pytest.mark.parametrize("speed", [0.03, 0.01, 0.005])
def test_absurdly_slow_machine_shows_cold_and_ram_within_limit(
    slow_cpu: None, encode: Encode, tmp_path: Path, speed: float
) -> None:
    machine = Machine(speed=speed, decode_speed=0.05, import_s=60.0, start_s=15.0)
    findings = run(machine, encode, tmp_path)
    assert machine.clock.now_s() <= LIMIT_S
    assert {"cold", "ram"} <= findings.met.keys()
    assert findings.met["ram"].ttft_s < findings.met["cold"].ttft_s


def test_machine_that_gets_slower_ends_within_limit(
    fast_cpu: None, encode: Encode, tmp_path: Path
) -> None:
    machine = Machine(slower_after_s=70.0, slower=3.0)
    findings = run(machine, encode, tmp_path)
    assert machine.clock.now_s() <= LIMIT_S
    assert {"cold", "ram"} <= findings.met.keys()


def test_phases_are_left_out_where_they_would_end_after_limit(
    slow_cpu: None, encode: Encode, tmp_path: Path
) -> None:
    machine = Machine(speed=0.02, import_s=150.0, start_s=50.0)
    findings = run(machine, encode, tmp_path)
    assert findings.left_out == ["restarted", "shared"]
    assert list(findings.met) == ["cold", "ram"]


def test_first_guess_that_is_too_large_starts_vllm_once_more(
    fast_cpu: None, encode: Encode, tmp_path: Path
) -> None:
    machine = Machine(speed=0.2)
    run(machine, encode, tmp_path)
    assert len(machine.started) == 5
    assert running_shape(machine).device_blocks < SHAPES[0].device_blocks
    assert machine.clock.now_s() <= AIM_S


def test_both_loads_are_compared_over_the_same_requests(
    fast_cpu: None, encode: Encode, tmp_path: Path
) -> None:
    findings = run(Machine(slower_after_s=60.0, slower=1.5), encode, tmp_path)
    texts = findings.load_texts
    assert texts["alone"].keys() == texts["tiers"].keys()
    assert len(texts["tiers"]) == findings.load_requests > 0


def test_tier_with_wrong_blocks_makes_its_row_fail(
    fast_cpu: None, encode: Encode, tmp_path: Path
) -> None:
    machine = Machine()
    machine.wrong.add("disk")
    verdicts = {row.name: row.met for row in agreement_rows(run(machine, encode, tmp_path))}
    assert verdicts["demo/outputs_different/ram_against_device"] is True
    assert verdicts["demo/outputs_different/disk_against_device"] is False
    assert verdicts["demo/outputs_different/shared_against_device"] is True


def test_tier_that_lost_the_prompt_is_not_reported_as_served(
    fast_cpu: None, encode: Encode, tmp_path: Path
) -> None:
    machine = Machine()
    machine.forgetful.add("shared")
    findings = run(machine, encode, tmp_path)
    assert findings.met["shared"].served_share == 0
    assert findings.met["disk"].served_share > 0.9


def test_first_of_each_group_keeps_order() -> None:
    prompts = [
        WorkloadPrompt(1, 0, []),
        WorkloadPrompt(0, 2, []),
        WorkloadPrompt(1, 3, []),
        WorkloadPrompt(0, 0, []),
    ]
    assert [each.label for each in first_of_each_group(prompts)] == ["1/0", "0/2"]


def test_cached_pages_of_missing_folder_are_ignored(tmp_path: Path) -> None:
    drop_cached_pages(tmp_path / "none")
    (tmp_path / "folder").mkdir()
    (tmp_path / "block").write_bytes(bytes(8192))
    drop_cached_pages(tmp_path)
    assert (tmp_path / "block").read_bytes() == bytes(8192)
