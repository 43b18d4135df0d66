"""The command line of `python -m kvtier_bench`: one sub-command for each benchmark."""

import signal
from pathlib import Path

import click
from rich.console import Console

from kvtier.cli.main import Commands
from kvtier_bench import demo as demo_bench
from kvtier_bench import engine as engine_bench
from kvtier_bench import evict as evict_bench
from kvtier_bench import faults as fault_matrix
from kvtier_bench import kill as kill_bench
from kvtier_bench import micro as micro_bench
from kvtier_bench.evict.suite import FILES as EVICT_FILES
from kvtier_bench.faults.suite import OPERATIONS
from kvtier_bench.forked import measure_forked
from kvtier_bench.kill.suite import KILLS
from kvtier_bench.lineup import lineup
from kvtier_bench.progress import Steps
from kvtier_bench.router import suite as router_bench
from kvtier_bench.router.contest import PEER as ROUTER_PEER
from kvtier_bench.rows import Report, Row, report, write_report
from kvtier_bench.table import summary_table
from kvtier_bench.ttft import measure_ttft
from kvtier_bench.workload import model_encoder, read_workload

MODEL = Path(".models/smollm2-135m")
WORKLOADS = Path("benchmarks/workloads")
PEERS = Path("benchmarks/peers")
PROFILES = Path("examples/router")
SCRATCH = Path("build/bench")
DEMO = Path(".kvtier-demo")

_ENGINE_EXAMPLES = """\b
Examples:
  python -m kvtier_bench engine --json benchmarks/results/engine-today.json
  python -m kvtier_bench engine --rounds 1 --workload low --row vllm-alone --row kvtier-ram
"""

_folder = click.Path(path_type=Path, file_okay=False)
_file = click.Path(path_type=Path, dir_okay=False)


@click.group(
    "kvtier_bench",
    cls=Commands,
    epilog=_ENGINE_EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"]},
)
def bench() -> None:
    """Measure: the parts (micro), real vLLM with and without kvtier (engine), the demo.

    Every measurement is a row {name, value, unit, reference, ratio, target, met}. A row that
    misses its target is shown as missed.
    """
    # Killed politely or hung up on, end as by Ctrl-C: stop the server before leaving.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)


@bench.command(
    "micro",
    epilog="\b\nExample:\n  python -m kvtier_bench micro --json micro.json",
)
@click.option("--json", "json_path", type=_file, help="Also write the rows to this file.")
@click.option(
    "--scratch",
    type=_folder,
    default=SCRATCH,
    show_default=True,
    help="Where the disk tier is measured; on a real disk.",
)
def micro(json_path: Path | None, scratch: Path) -> None:
    """Measure the hot paths one by one, against raw copies and raw files in the same run."""
    micro_bench.run(json_path, scratch, Console())


@bench.command(
    "faults",
    epilog="\b\nExample:\n  python -m kvtier_bench faults --json fault.json",
)
@click.option("--json", "json_path", type=_file, help="Also write the rows to this file.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option(
    "--operations",
    type=click.IntRange(min=1),
    default=OPERATIONS,
    show_default=True,
    help="In all, but for those on a bucket.",
)
@click.option(
    "--bucket",
    help="Also a smaller run on a real server: s3://bucket/prefix, credentials and endpoint "
    "from the environment. It keeps to a prefix of its own below that.",
)
@click.option("--scratch", type=_folder, default=SCRATCH, show_default=True)
def faults(
    json_path: Path | None, seed: int, operations: int, bucket: str | None, scratch: Path
) -> None:
    """Put every fault below shared tiers while they read, write, find, delete and scan.

    Fails if a wrong byte, a hang or an exception came out, or if a bound was not held.
    """
    rows = fault_matrix.run(
        json_path, scratch, Console(), seed=seed, operations=operations, bucket=bucket
    )
    if not all(row.met for row in rows):
        raise click.ClickException("a row of the fault matrix is not met")


@bench.command(
    "kill",
    epilog="\b\nExample:\n  python -m kvtier_bench kill --json benchmarks/results/kill-today.json",
)
@click.option("--json", "json_path", type=_file, help="Also write the rows to this file.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--kills", type=click.IntRange(min=1), default=KILLS, show_default=True)
@click.option(
    "--scratch",
    type=_folder,
    default=SCRATCH,
    show_default=True,
    help="Room for 5 GB; a real disk.",
)
def kill(json_path: Path | None, seed: int, kills: int, scratch: Path) -> None:
    """Kill four writers and two evictors of one folder at random moments, while one reads.

    Fails if something published was lost, something wrong was read, or something was left.
    """
    rows = kill_bench.run(json_path, scratch, Console(), seed=seed, kills=kills)
    if any(row.met is False for row in rows):
        raise click.ClickException("a row of the kill run is not met")


@bench.command(
    "evict",
    epilog="\b\nExample:\n  python -m kvtier_bench evict --json evict.json",
)
@click.option("--json", "json_path", type=_file, help="Also write the rows to this file.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--files", type=click.IntRange(min=1000), default=EVICT_FILES, show_default=True)
@click.option(
    "--scratch",
    type=_folder,
    default=SCRATCH,
    show_default=True,
    help="Room for 8 KiB and an inode a file; a real disk.",
)
def evict(json_path: Path | None, seed: int, files: int, scratch: Path) -> None:
    """Bring a tree of many small files under its bound, and see whom its readers miss.

    Against `find -delete` and against removal in the order of discovery, each on a tree of its
    own. Fails if a row with a target is not met.
    """
    rows = evict_bench.run(json_path, scratch, Console(), files=files, seed=seed)
    if any(row.met is False for row in rows):
        raise click.ClickException("a row of the eviction run is not met")


@bench.command(
    "router",
    epilog="""\b
Examples:
  python -m kvtier_bench router --json benchmarks/results/router-today.json
  python -m kvtier_bench router --part sim --seed 2
  python -m kvtier_bench router --part engines --workload replicas-small --rounds 1
""",
)
@click.option("--json", "json_path", type=_file, help="Also write the rows to this file.")
@click.option(
    "--part",
    "parts",
    type=click.Choice(router_bench.PARTS),
    multiple=True,
    default=router_bench.PARTS,
    show_default=True,
    help="What is measured; repeat for several.",
)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="Of sessions and arrivals.")
@click.option(
    "--peer",
    type=_file,
    default=ROUTER_PEER,
    show_default=True,
    help="The field's router; without it, kvtier is measured alone.",
)
@click.option(
    "--envoy",
    type=_file,
    default=router_bench.ENVOY,
    show_default=True,
    help="Without it, the picker is left out.",
)
@click.option("--examples", type=_folder, default=PROFILES, show_default=True)
@click.option("--model", type=_folder, default=MODEL, show_default=True, help="Of real replicas.")
@click.option(
    "--workload",
    "workload_name",
    default=router_bench.TRAFFIC.stem,
    show_default=True,
    help="Of real replicas: a file of the workloads folder that says when requests arrive.",
)
@click.option("--workloads", type=_folder, default=WORKLOADS, show_default=True)
@click.option("--scratch", type=_folder, default=SCRATCH, show_default=True, help="Logs.")
def router(
    json_path: Path | None,
    parts: tuple[str, ...],
    rounds: int,
    seed: int,
    peer: Path,
    envoy: Path,
    examples: Path,
    model: Path,
    workload_name: str,
    workloads: Path,
    scratch: Path,
) -> None:
    """Measure the router: beside another before the same replicas, in parts, and simulated.

    CPU a request, latency and idle streams of `kvtier route` (http); the picker behind Envoy
    (epp); the indexes (index); 64 simulated replicas under every profile (sim); time to first
    token before two real engines, about 20 minutes (engines). Rounds are interleaved.
    """
    setting = router_bench.Setting(
        scratch=scratch,
        examples=examples,
        peer=peer,
        envoy=envoy,
        model=model,
        traffic=workloads / f"{workload_name}.yaml",
        rounds=rounds,
        seed=seed,
    )
    router_bench.run(json_path, setting, Console(), parts=parts)


@bench.command("engine", epilog=_ENGINE_EXAMPLES)
@click.option("--json", "json_path", type=_file, help="Also write rows and runs to this file.")
@click.option("--model", type=_folder, default=MODEL, show_default=True, help="Model folder.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the first round.")
@click.option(
    "--workload",
    "workload_names",
    multiple=True,
    default=("high-1.2", "high-1.7", "low"),
    show_default=True,
    help="A file of the workloads folder; repeat for several.",
)
@click.option(
    "--row",
    "contestants",
    multiple=True,
    default=tuple(lineup(Path())),
    show_default=True,
    help="Who runs; repeat for several.",
)
@click.option("--workloads", type=_folder, default=WORKLOADS, show_default=True)
@click.option("--peers", type=_folder, default=PEERS, show_default=True)
@click.option(
    "--scratch",
    type=_folder,
    default=SCRATCH,
    show_default=True,
    help="Logs and disk tiers; on a real disk.",
)
def engine(
    json_path: Path | None,
    model: Path,
    rounds: int,
    seed: int,
    workload_names: tuple[str, ...],
    contestants: tuple[str, ...],
    workloads: Path,
    peers: Path,
    scratch: Path,
) -> None:
    """Measure real vLLM alone, with its own tiering, with kvtier, and at the limit.

    One server at a time, interleaved rounds, caches emptied before each run. The file is
    rewritten after every round, so a run that is cut off keeps what it has.
    """
    plan = engine_bench.Plan(
        model=model,
        workloads=[read_workload(workloads / f"{name}.yaml") for name in workload_names],
        contestants=list(contestants),
        rounds=rounds,
        seed=seed,
        scratch=scratch,
        peers=peers,
    )
    console = Console()
    encode = model_encoder(plan.model)
    plan.check()
    steps = Steps(console, plan.rounds * len(plan.contestants))

    def keep(measurements: engine_bench.Measurements) -> None:
        _keep(json_path, measurements.report())

    measurements = engine_bench.measure(plan, encode, steps, keep)
    for workload in plan.workloads:
        console.print(summary_table(workload.title, measurements.medians(workload.name)))
    _print_verdicts(console, measurements.rows())


@bench.command(
    "forked",
    epilog="\b\nExample:\n  python -m kvtier_bench forked --json benchmarks/results/forked.json",
)
@click.option("--json", "json_path", type=_file, help="Also write rows and times to this file.")
@click.option("--model", type=_folder, default=MODEL, show_default=True, help="Model folder.")
@click.option(
    "--prompts",
    type=click.IntRange(min=2),
    default=20,
    show_default=True,
    help="Prompts that each server answers.",
)
@click.option(
    "--scratch", type=_folder, default=SCRATCH, show_default=True, help="Folder of the logs."
)
def forked(json_path: Path | None, model: Path, prompts: int, scratch: Path) -> None:
    """Compare a forked server with one that is started the usual way.

    Tests, the demo and the benchmarks fork their engines from one process that has imported
    vLLM. This measures that such an engine is neither faster nor slower at serving.
    """
    console = Console()
    rows, details = measure_forked(
        model, model_encoder(model), Steps(console, 3), prompts=prompts, scratch=scratch
    )
    _keep(json_path, report("forked", rows, details))
    _print_verdicts(console, rows)


@bench.command(
    "ttft",
    epilog="\b\nExample:\n  python -m kvtier_bench ttft --json benchmarks/results/ttft-today.json",
)
@click.option("--json", "json_path", type=_file, help="Also write rows and requests to this file.")
@click.option("--model", type=_folder, default=MODEL, show_default=True, help="Model folder.")
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Prompts of each length.",
)
@click.option(
    "--scratch",
    type=_folder,
    default=SCRATCH,
    show_default=True,
    help="Logs, disk tier and shared folder; on a real disk.",
)
def ttft(json_path: Path | None, model: Path, repeats: int, scratch: Path) -> None:
    """Measure time to first token by where the prefix is: nowhere, device, RAM, disk, shared.

    Starts real vLLM three times, one at a time, and takes about six minutes.
    """
    console = Console()
    rows, details = measure_ttft(
        model, model_encoder(model), Steps(console, 3), repeats=repeats, scratch=scratch
    )
    _keep(json_path, report("ttft", rows, details))
    _print_verdicts(console, rows)


@bench.command(
    "demo", epilog="\b\nExample:\n  python -m kvtier_bench demo --output /tmp/kvtier-demo"
)
@click.option("--model", type=_folder, default=MODEL, show_default=True, help="Model folder.")
@click.option(
    "--output",
    type=_folder,
    default=DEMO,
    show_default=True,
    help="Where demo.json, demo.png and the logs go; on a real disk.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=1),
    default=demo_bench.AIM_S / 60,
    show_default=True,
    help="Time to fill; prompts, questions and answers are sized to it on this machine.",
)
def demo(model: Path, output: Path, minutes: float) -> None:
    """See one prompt computed by real vLLM, then found in RAM, on disk and in a shared folder.

    Ends within five minutes on any machine: the first requests measure how fast it is, and the
    rest is sized to that. Then a table compares vLLM without and with kvtier at the same load.
    Fails with exit code 1 if an answer from RAM, disk or the folder differs from the device's own.
    Needs about 5 GB of free memory and 4 GB of disk meanwhile. Ctrl-C ends it and leaves nothing
    running.
    """
    agreed = demo_bench.run_demo(model, model_encoder(model), Console(), output, aim_s=60 * minutes)
    if not agreed:
        raise click.ClickException("answers from RAM, disk or the shared folder differ")


def _keep(json_path: Path | None, content: Report) -> None:
    if json_path is not None:
        write_report(json_path, content)


def _print_verdicts(console: Console, rows: list[Row]) -> None:
    for row in rows:
        if row.met is None:
            continue
        mark = "[green]met[/green]   " if row.met else "[red]missed[/red]"
        judged = row.value if row.ratio is None else row.ratio
        console.print(f"{mark} {row.name}: {judged:.3f} (target {row.target}) [dim]{row.note}[/]")
