"""Running the demo and showing what it found.

The one picture that matters comes first: the time to the first token of the same prompt, computed
and found in each tier. Then the table of the load without and with kvtier, whether the answers
agree, and what to do next.
"""

import tempfile
from pathlib import Path

import msgspec
from rich.console import Console
from rich.rule import Rule

from kvtier.clock import Clock, MonotonicClock
from kvtier.errors import InvalidSettings
from kvtier_bench.demo.engine import OpenEngine, open_vllm
from kvtier_bench.demo.findings import Findings, agreement_rows, findings_rows
from kvtier_bench.demo.phases import ALONE, PHASES, WITH, Demo
from kvtier_bench.demo.sizing import AIM_S
from kvtier_bench.plot import draw_ttft, ttft_bars
from kvtier_bench.progress import PhaseScreen
from kvtier_bench.rows import report, write_report
from kvtier_bench.table import summary_table
from kvtier_bench.workload import Encode

PLACES = {
    "cold": "vLLM alone, computed",
    "ram": "kvtier, from RAM",
    "disk": "restarted, from disk",
    "shared": "another engine, shared",
}
SERVED_SHARE = 0.5
"""A tier that served a smaller share of the prompt is reported as a miss."""

NEXT = """[bold]Next:[/bold]
  make serve              vLLM with this model on port 8000: 2 GiB of RAM and 8 GiB of disk
  curl 127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\
    -d '{"prompt": "The capital of France is", "max_tokens": 16}'
  .venv/bin/kvtier serve MODEL --ram 20GiB --disk /mnt/nvme/kvtier=100GiB   your own"""


def run_demo(
    model: Path,
    encode: Encode,
    console: Console,
    output: Path,
    *,
    aim_s: float = AIM_S,
    clock: Clock | None = None,
    open_engine: OpenEngine | None = None,
) -> bool:
    """Run all phases, show the results, write JSON and PNG. Return True if the answers agree."""
    clock = clock or MonotonicClock()
    output.mkdir(parents=True, exist_ok=True)
    for name in ("demo.json", "demo.png"):
        (output / name).unlink(missing_ok=True)  # an interrupted run leaves no older results
    screen = PhaseScreen(console, list(PHASES.values()), aim_s, clock)
    demo = Demo(model, encode, screen, output, aim_s, clock, open_engine or open_vllm(clock))
    # On the output's own file system, because /tmp may be memory.
    with tempfile.TemporaryDirectory(dir=output, prefix="tiers-") as folder, screen:
        demo.run(Path(folder).resolve())
    return show(demo.findings, console, output)


def show(findings: Findings, console: Console, output: Path) -> bool:
    """Print the findings and write them to `output`. Return True if the answers agree."""
    write_report(
        output / "demo.json",
        report("demo", findings_rows(findings), msgspec.to_builtins(findings)),
    )
    title = f"Time to the first token of the same prompt of {findings.prompt_tokens:,} tokens"
    bars = [
        (name, findings.met[place].ttft_s)
        for place, name in PLACES.items()
        if place in findings.met
    ]
    console.print(Rule())
    console.print(ttft_bars(title, bars, console))
    console.print()
    for place, name in PLACES.items():
        met = findings.met.get(place)
        if met is not None and place != "cold" and met.served_share < SERVED_SHARE:
            console.print(f"[red]Not served there[/red]: {name}: {met.served_share:.0%}")
    if findings.left_out:
        names = ", ".join(PHASES[phase] for phase in findings.left_out)
        console.print(f"Left out, because no time was left on this machine: {names}.")
    if findings.loads:
        assert findings.sizes is not None
        assert findings.sizes.workload is not None
        rows = [(ALONE, findings.loads["alone"]), (WITH, findings.loads["tiers"])]
        load = findings.sizes.workload
        heading = f"{findings.load_requests} of {load.requests} requests: {load.title}"
        console.print(summary_table(heading, rows))
    else:
        console.print("No throughput table: this machine had no time for it.\n")
    agreed = _show_agreement(findings, console)
    console.print(_draw(output / "demo.png", title, bars))
    console.print(f"Written: {output / 'demo.json'}, and each server's log beside it.\n")
    console.print(NEXT, soft_wrap=True)
    return agreed


def _show_agreement(findings: Findings, console: Console) -> bool:
    rows = agreement_rows(findings)
    for row in rows:
        mark = {True: "[green]agree[/green]", False: "[red]DIFFER[/red]", None: "counted"}[row.met]
        console.print(f"{mark}: {row.name.rpartition('/')[2]}: {row.value:g} differ {row.note}")
    return all(row.met is not False for row in rows)


def _draw(path: Path, title: str, bars: list[tuple[str, float]]) -> str:
    try:
        draw_ttft(path, title, bars)
    except InvalidSettings as error:
        return f"No plot: {error}".replace("[", r"\[")
    return f"Written: {path}"
