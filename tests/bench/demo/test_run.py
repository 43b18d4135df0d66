import io
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from kvtier_bench import cli
from kvtier_bench.demo import phases, run_demo
from kvtier_bench.demo.engine import VLLM
from kvtier_bench.demo.sizing import SHAPES
from kvtier_bench.rows import read_report
from kvtier_bench.server import Server, ServerFailed, ServerSettings
from kvtier_bench.workload import Encode, build_prompts
from tests.bench.demo.machine import Machine


class HurriedClock:
    """Real time without the sleeps."""

    def __init__(self) -> None:
        self._skipped_s = 0.0

    def now_s(self) -> float:
        return time.monotonic() + self._skipped_s

    def sleep(self, seconds: float) -> None:
        self._skipped_s += seconds


@pytest.fixture(autouse=True)
def small_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "first_shape", lambda dtype: SHAPES[2])


def test_demo_with_stand_in_servers_shows_and_writes_everything(
    stand_in: Path, fonts: None, tmp_path: Path, encode: Encode
) -> None:
    shown = io.StringIO()
    output = tmp_path / "kvtier-demo"
    console = Console(file=shown, width=120)
    assert run_demo(Path("model"), encode, console, output, clock=HurriedClock()) is True
    said = shown.getvalue()
    for text in (
        "Chosen: one prompt of",
        "Time to the first token of the same prompt",
        "another engine, shared",
        "vLLM + kvtier",
        "agree: ram_against_device: 0 differ",
        "agree: disk_against_device: 0 differ",
        "agree: shared_against_device: 0 differ",
        "make serve",
        "kvtier serve",
        "curl 127.0.0.1:8000",
    ):
        assert text in said, text
    # The stand-in finds the first 256 tokens of a prompt where they are.
    details = read_report(output / "demo.json").details
    assert [details["met"][tier]["served_share"] > 0 for tier in ("ram", "disk", "shared")] == [
        True
    ] * 3
    names = {each.name for each in output.iterdir()}
    assert names >= {"demo.json", "vllm-alone.log", "kvtier.log", "kvtier-other.log"}
    assert not [each for each in output.iterdir() if each.is_dir()]


def test_demo_that_cannot_start_leaves_only_its_log(
    stand_in: Path, tmp_path: Path, encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_FAILS", "1")
    output = tmp_path / "kvtier-demo"
    with pytest.raises(ServerFailed):
        run_demo(Path("model"), encode, Console(file=io.StringIO()), output)
    assert [each.name for each in output.iterdir()] == ["vllm-alone.log"]


def test_demo_says_what_was_left_out(tmp_path: Path, encode: Encode, fonts: None) -> None:
    machine = Machine(speed=0.02, import_s=150.0, start_s=50.0)
    shown = io.StringIO()
    run_demo(
        Path("model"),
        encode,
        Console(file=shown, width=200),
        tmp_path,
        clock=machine.clock,
        open_engine=machine.open_engine,
    )
    assert "Left out, because no time was left on this machine: restarted" in shown.getvalue()
    assert "No throughput table" in shown.getvalue()


def test_tier_that_served_nothing_is_named(tmp_path: Path, encode: Encode, fonts: None) -> None:
    machine = Machine()
    machine.forgetful.add("disk")
    shown = io.StringIO()
    run_demo(
        Path("model"),
        encode,
        Console(file=shown, width=200),
        tmp_path,
        clock=machine.clock,
        open_engine=machine.open_engine,
    )
    assert "Not served there: restarted, from disk: 0%" in shown.getvalue()


def run_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encode: Encode, outcome: Any
) -> int:
    def instead(*_: Any, **__: Any) -> bool:
        if isinstance(outcome, BaseException):
            raise outcome
        return bool(outcome)

    monkeypatch.setattr(cli, "model_encoder", lambda model: encode)
    monkeypatch.setattr("kvtier_bench.demo.run_demo", instead)
    return CliRunner().invoke(cli.bench, ["demo", "--output", str(tmp_path)]).exit_code


@pytest.mark.parametrize(("outcome", "code"), [(True, 0), (False, 1), (KeyboardInterrupt(), 130)])
def test_exit_code_of_demo_command(
    tmp_path: Path, encode: Encode, monkeypatch: pytest.MonkeyPatch, outcome: Any, code: int
) -> None:
    assert run_command(monkeypatch, tmp_path, encode, outcome) == code


def test_serve_stops_at_its_deadline_and_keeps_order(
    stand_in: Path, tmp_path: Path, encode: Encode
) -> None:
    load = SHAPES[2].workload(questions=2, output_len=4)
    prompts = build_prompts(load, encode, seed=1)
    settings = ServerSettings(model=Path("model"), device_blocks=10, log=tmp_path / "server.log")
    clock = HurriedClock()
    with Server(settings) as server:
        server.start(lambda news: None)
        engine = VLLM(server, clock)
        late = engine.serve(
            prompts, load, "a", deadline_s=clock.now_s() - 1, tell=lambda news: None
        )
        done = engine.serve(
            prompts, load, "b", deadline_s=clock.now_s() + 60, tell=lambda news: None
        )
    assert late.answers == []
    assert [each.text for each in done.answers] == [str(sum(each.tokens)) for each in prompts]
    assert done.summary(3, {}).tokens_per_s > 0
