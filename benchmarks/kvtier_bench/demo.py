"""The demo: what kvtier does for a real engine, seen in a few minutes.

Three servers, one after another: vLLM alone; vLLM with kvtier's RAM and disk; the same again
after a restart, its first requests served from disk. Answers are compared in two ways. A
prefix brought back from RAM or disk must give, token for token, what the device's own copy
gives: that is checked request by request and must hold. Against vLLM alone the same answers
are counted, not demanded: in bf16 the shape of a chunk may turn a close choice, with or
without a cache.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.rule import Rule

from kvtier.clock import Clock, MonotonicClock
from kvtier.errors import InvalidSettings
from kvtier_bench.client import complete
from kvtier_bench.engine import warm_up
from kvtier_bench.lineup import kvtier_transfer
from kvtier_bench.plot import draw_summaries
from kvtier_bench.progress import Steps
from kvtier_bench.rows import Row, Target, measured, report, write_report
from kvtier_bench.runs import Run, disagreements, run_workload
from kvtier_bench.server import Server, ServerSettings
from kvtier_bench.table import summary_table
from kvtier_bench.ttft import drop_page_cache
from kvtier_bench.workload import Encode, Prompt, Workload, build_prompts

RAM_BYTES = 1024**3
DISK_CAPACITY = "3GiB"
SETTLE_S = 2.0
SALT = "demo"

ALONE = "vLLM alone"
WITH = "vLLM + kvtier (RAM + disk)"
ALONE_FIRST = "vLLM alone, first requests"
RESTARTED = "vLLM + kvtier, restarted"


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """What the three servers came to. `*_first` are the first requests, one at a time."""

    alone_first: Run
    alone: Run
    with_kvtier: Run
    on_device: dict[str, str]
    """Text by prompt label of the first requests, their prefix on the device..."""
    in_ram: dict[str, str]
    """... and in RAM only. `restarted_first` has them from disk."""
    restarted_first: Run


def run_demo(
    model: Path,
    workload: Workload,
    encode: Encode,
    console: Console,
    output: Path,
    clock: Clock | None = None,
) -> bool:
    """Run it all, print the tables, write JSON and PNG into `output`. True if answers agree."""
    demo = _Demo(model, workload, encode, Steps(console, 3), output, clock or MonotonicClock())
    output.mkdir(parents=True, exist_ok=True)
    console.print(_introduction(workload))
    # On the output's own file system, because /tmp may be memory.
    with tempfile.TemporaryDirectory(dir=output, prefix="disk-") as disk:
        findings = demo.run(Path(disk).resolve())
    return _present(findings, workload, console, output)


class _Demo:
    def __init__(
        self,
        model: Path,
        workload: Workload,
        encode: Encode,
        steps: Steps,
        output: Path,
        clock: Clock,
    ) -> None:
        self._model = model
        self._workload = workload
        self._encode = encode
        self._steps = steps
        self._output = output
        self._clock = clock
        self._prompts = build_prompts(workload, encode, seed=1)
        self._first = first_of_each_group(self._prompts)

    def run(self, disk: Path) -> Findings:
        """The three servers, one after another."""
        transfer = kvtier_transfer(RAM_BYTES, disk, DISK_CAPACITY)
        with self._steps.step(f"{ALONE}: {len(self._prompts)} requests"):
            alone_first, alone = self._run_alone()
        with self._steps.step(f"{WITH}: the same requests"):
            with_kvtier, on_device, in_ram = self._run_with_kvtier(transfer)
        with self._steps.step(f"{RESTARTED}: {len(self._first)} first requests, from disk"):
            restarted_first = self._run_restarted(transfer)
        return Findings(
            alone_first=alone_first,
            alone=alone,
            with_kvtier=with_kvtier,
            on_device=on_device,
            in_ram=in_ram,
            restarted_first=restarted_first,
        )

    def _run_alone(self) -> tuple[Run, Run]:
        with Server(self._settings("vllm-alone", None)) as server:
            server.start(self._steps.tell)
            warm_up(server, self._encode)
            server.forget_everything()
            first = self._load(server, self._first, concurrency=1)
            server.forget_everything()
            return first, self._load(server, self._prompts, self._workload.concurrency)

    def _run_with_kvtier(
        self, transfer: dict[str, Any]
    ) -> tuple[Run, dict[str, str], dict[str, str]]:
        with Server(self._settings("kvtier", transfer)) as server:
            server.start(self._steps.tell)
            warm_up(server, self._encode)
            server.forget_device()
            run = self._load(server, self._prompts, self._workload.concurrency)
            self._steps.tell("comparing answers: prefix on the device, then in RAM")
            on_device = {each.label: self._ask_twice(server, each) for each in self._first}
            self._clock.sleep(SETTLE_S)
            server.forget_device()
            in_ram = {each.label: self._ask(server, each) for each in self._first}
            self._clock.sleep(SETTLE_S)
            return run, on_device, in_ram

    def _run_restarted(self, transfer: dict[str, Any]) -> Run:
        with Server(self._settings("kvtier-restarted", transfer)) as server:
            server.start(self._steps.tell)
            warm_up(server, self._encode)
            drop_page_cache()
            return self._load(server, self._first, concurrency=1)

    def _load(self, server: Server, prompts: Sequence[Prompt], concurrency: int) -> Run:
        self._steps.tell(f"serving {len(prompts)} requests")
        workload = msgspec.structs.replace(self._workload, concurrency=concurrency)
        return run_workload(server, workload, prompts, salt=SALT, clock=self._clock)

    def _ask_twice(self, server: Server, prompt: Prompt) -> str:
        """The second answer finds the prefix on the device, wherever the first found it."""
        self._ask(server, prompt)
        return self._ask(server, prompt)

    def _ask(self, server: Server, prompt: Prompt) -> str:
        # One at a time: in a batch, a neighbour may turn a close choice.
        return complete(server.endpoint, prompt.tokens, self._workload.output_len, SALT).text

    def _settings(self, name: str, transfer: dict[str, Any] | None) -> ServerSettings:
        return ServerSettings(
            model=self._model,
            device_blocks=self._workload.device_blocks,
            log=self._output / f"{name}.log",
            kv_transfer=transfer,
        )


def first_of_each_group(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The first request of every group, in the order they come: none can hit the device."""
    seen: dict[int, Prompt] = {}
    for prompt in prompts:
        seen.setdefault(prompt.group, prompt)
    return list(seen.values())


def agreement_rows(findings: Findings) -> list[Row]:
    """The demanded agreement (RAM and disk against device) and the counted one."""
    device = findings.on_device
    rows = [
        measured(
            f"demo/outputs_different/{tier}_against_device",
            disagreements(texts, device),
            "requests",
            target=Target("<=", 0),
            note=f"of {len(device)}, greedy",
        )
        for tier, texts in (("ram", findings.in_ram), ("disk", findings.restarted_first.texts))
    ]
    texts = findings.with_kvtier.texts
    counted = measured(
        "demo/outputs_different/kvtier_against_alone",
        disagreements(texts, findings.alone.texts),
        "requests",
        note=f"of {len(texts)}, greedy; bf16 chunk shapes differ with and without a cache",
    )
    return [*rows, counted]


def _introduction(workload: Workload) -> str:
    return (
        f"[bold]{workload.title}[/bold]: {workload.groups} system prompts of "
        f"{workload.system_prompt_len} tokens, {workload.prompts_per_group} questions each, "
        f"shuffled, {workload.concurrency} at a time, {workload.output_len} tokens out.\n"
        f"The prefixes need {workload.working_set_ratio:.1f} times the device's "
        f"{workload.device_blocks} blocks. Three servers, about a minute each to start.\n"
    )


def _present(findings: Findings, workload: Workload, console: Console, output: Path) -> bool:
    main_rows = [(ALONE, findings.alone.summary), (WITH, findings.with_kvtier.summary)]
    first_rows = [
        (ALONE_FIRST, findings.alone_first.summary),
        (RESTARTED, findings.restarted_first.summary),
    ]
    checks = agreement_rows(findings)
    agreed = all(row.met is not False for row in checks)
    summaries = {name: msgspec.to_builtins(each) for name, each in [*main_rows, *first_rows]}
    details = {"workload": msgspec.to_builtins(workload), "summaries": summaries}
    write_report(output / "demo.json", report("demo", checks, details))
    console.print(Rule())
    console.print(summary_table(workload.title, main_rows))
    console.print(summary_table("After a restart: the first request of every group", first_rows))
    for row in checks:
        mark = {True: "[green]agree[/green]", False: "[red]DIFFER[/red]", None: "counted"}[row.met]
        console.print(f"{mark}: {row.name.rpartition('/')[2]}: {row.value:g} differ {row.note}")
    console.print(_draw(output / "demo.png", workload.title, [*main_rows, *first_rows]))
    console.print(f"Written: {output / 'demo.json'}, and each server's log beside it.")
    console.print(_NEXT, soft_wrap=True)
    return agreed


def _draw(path: Path, title: str, rows: list[Any]) -> str:
    try:
        draw_summaries(path, title, rows)
    except InvalidSettings as error:
        return f"No plot: {error}".replace("[", r"\[")
    return f"Written: {path}"


_NEXT = """
To keep the stack running: [bold]make serve[/bold]. Then, from another terminal:
  curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\
    -d '{"prompt": "The capital of France is", "max_tokens": 16}'
"""
