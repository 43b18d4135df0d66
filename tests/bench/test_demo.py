import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from kvtier.clock import VirtualClock
from kvtier_bench import demo, ttft
from kvtier_bench.demo import Findings, agreement_rows, first_of_each_group, run_demo
from kvtier_bench.rows import read_report
from kvtier_bench.runs import Run, RunSummary
from kvtier_bench.server import ServerFailed
from kvtier_bench.workload import Encode, Prompt, Workload

TEXTS = {"0/1": "a", "1/0": "b"}
SUMMARY = RunSummary(
    mean_ttft_s=1.0,
    p90_ttft_s=1.0,
    mean_e2e_s=1.0,
    p90_e2e_s=1.0,
    tokens_per_s=1.0,
    cpu_s_per_request=1.0,
    hit_rates={},
)


def run(**texts: str) -> Run:
    return Run(summary=SUMMARY, texts={**TEXTS, **texts})


@pytest.fixture
def findings() -> Findings:
    return Findings(
        alone_first=run(),
        alone=run(),
        with_kvtier=run(),
        on_device=TEXTS,
        in_ram=TEXTS,
        restarted_first=run(),
    )


def test_the_first_request_of_every_group_in_order() -> None:
    prompts = [Prompt(1, 0, []), Prompt(0, 2, []), Prompt(1, 3, []), Prompt(0, 0, [])]
    assert [each.label for each in first_of_each_group(prompts)] == ["1/0", "0/2"]


def test_equal_answers_agree(findings: Findings) -> None:
    assert [row.met for row in agreement_rows(findings)] == [True, True, None]


def test_a_tier_that_changes_an_answer_fails(findings: Findings) -> None:
    wrong = {**TEXTS, "0/1": "garbage"}
    ram = msgspec.structs.replace(findings, in_ram=wrong)
    assert [row.met for row in agreement_rows(ram)] == [False, True, None]
    disk = msgspec.structs.replace(findings, restarted_first=Run(summary=SUMMARY, texts=wrong))
    assert [row.met for row in agreement_rows(disk)] == [True, False, None]


def test_against_vllm_alone_answers_are_counted(findings: Findings) -> None:
    other = Run(summary=SUMMARY, texts={**TEXTS, "1/0": "c"})
    counted = agreement_rows(msgspec.structs.replace(findings, with_kvtier=other))[2]
    assert (counted.value, counted.met) == (1, None)


def test_the_whole_demo(
    stand_in: Path,
    fonts: None,
    tmp_path: Path,
    small: Workload,
    encode: Encode,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ttft, "PAGE_CACHE", tmp_path / "drop_caches")
    shown = io.StringIO()
    console = Console(file=shown, width=200)
    output = tmp_path / "kvtier-demo"
    assert run_demo(Path("model"), small, encode, console, output, VirtualClock()) is True
    said = shown.getvalue()
    assert "make serve" in said
    assert "curl http://127.0.0.1" in said
    # The restarted engine found every first prefix on disk.
    assert "disk 84%" in said
    # Each group's first request was answered once from RAM, to be compared.
    log = (output / "kvtier.log").read_text().splitlines()
    assert log.count("found ram demo") == small.groups
    written = read_report(output / "demo.json")
    restarted = written.details["summaries"][demo.RESTARTED]
    assert restarted["hit_rates"]["disk"] == pytest.approx(256 / 304)
    assert {each.name for each in output.iterdir()} >= {"demo.json", "vllm-alone.log"}
    assert not [each for each in output.iterdir() if each.is_dir()]


def test_a_demo_that_cannot_start_leaves_no_disk_tier(
    stand_in: Path,
    tmp_path: Path,
    small: Workload,
    encode: Encode,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STAND_IN_FAILS", "1")
    output = tmp_path / "kvtier-demo"
    with pytest.raises(ServerFailed):
        run_demo(Path("model"), small, encode, Console(file=io.StringIO()), output)
    assert [each.name for each in output.iterdir()] == ["vllm-alone.log"]
