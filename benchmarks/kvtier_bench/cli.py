"""The command line of `python -m kvtier_bench`, with one sub-command for each benchmark."""

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
from kvtier_bench.options import (
    DEMO,
    FILE,
    FOLDER,
    PEERS,
    PROFILES,
    count_option,
    example,
    json_option,
    model_option,
    scratch_option,
    seed_option,
    workloads_option,
)
from kvtier_bench.progress import Steps
from kvtier_bench.router import suite as router_bench
from kvtier_bench.router.contest import PEER as ROUTER_PEER
from kvtier_bench.rows import BenchmarkReport, Row, describe, report, write_report
from kvtier_bench.table import summary_table
from kvtier_bench.ttft import measure_ttft
from kvtier_bench.workload import model_encoder, read_workload


@click.group(
    "kvtier_bench",
    cls=Commands,
    epilog=example(
        "demo",
        "micro --json benchmarks/results/micro-today.json",
        "engine --rounds 1 --workload low --row vllm-alone --row kvtier-ram",
    ),
    context_settings={"help_option_names": ["-h", "--help"]},
)
def bench() -> None:
    """Measure kvtier: single parts, whole engines, the router, and behavior under faults.

    Every measurement is a row of a report: a name, a value and its unit, often a reference value
    and a ratio to it, and a target that the row meets or misses. A missed target is reported, never
    dropped. benchmarks/README.md describes the benchmarks and their reports.
    """
    # SIGTERM and SIGHUP end a benchmark as Ctrl-C does, so that it stops its servers first.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)


@bench.command("micro", epilog=example("micro --json micro.json"))
@json_option()
@scratch_option("Folder for the files of the disk and shared tiers; put it on a real disk.")
def micro(json_path: Path | None, scratch: Path) -> None:
    """Measure tiers, arena and index alone, without an engine.

    Tiers are compared with plain copies and plain files of the same size in the same run. Takes
    about three minutes and 1 GiB of disk.
    """
    micro_bench.run(json_path, scratch, Console())


@bench.command("faults", epilog=example("faults --json fault.json"))
@json_option()
@seed_option("Seed of the faults and of the blocks that are asked for.")
@count_option(
    "--operations",
    OPERATIONS,
    "Number of tier and cache calls in all, not counting those on a bucket.",
)
@click.option(
    "--bucket",
    help="Also run a smaller matrix on this bucket of a real server, as s3://bucket/prefix. The "
    "environment gives credentials and endpoint. Only objects below a new prefix are touched.",
)
@scratch_option("Folder for the shared tier's files.")
def faults(
    json_path: Path | None, seed: int, operations: int, bucket: str | None, scratch: Path
) -> None:
    """Inject faults below the shared tier and check every answer.

    Every kind of fault meets every operation, on a folder and on objects. Fails if a wrong byte,
    an exception or a hang reaches the caller, or if the tier exceeds its bound of known blocks.
    """
    rows = fault_matrix.run(
        json_path, scratch, Console(), seed=seed, operations=operations, bucket=bucket
    )
    if not all(row.met for row in rows):
        raise click.ClickException("a row of the fault matrix misses its target")


@bench.command("kill", epilog=example("kill --json benchmarks/results/kill-today.json"))
@json_option()
@seed_option("Seed of the moments of the kills and of the blocks that are written and read.")
@count_option("--kills", KILLS, "Number of processes to kill.")
@scratch_option("Folder for the shared tier's files; needs 5 GB on a real disk.")
def kill(json_path: Path | None, seed: int, kills: int, scratch: Path) -> None:
    """Kill writers and evictors of a shared folder at random.

    Four writers and two evictors are killed with SIGKILL and started again, while a reader
    verifies every block. Fails if a published
    block was lost, a wrong byte was read, or a temporary file was left behind.
    """
    rows = kill_bench.run(json_path, scratch, Console(), seed=seed, kills=kills)
    if any(row.met is False for row in rows):
        raise click.ClickException("a row of the kill run misses its target")


@bench.command("evict", epilog=example("evict --json evict.json"))
@json_option()
@seed_option("Seed of the files and of the read pattern.")
@count_option("--files", EVICT_FILES, "Number of files in the tree.", minimum=1000)
@scratch_option("Folder for the tree; needs 8 KiB and an inode for each file, on a real disk.")
def evict(json_path: Path | None, seed: int, files: int, scratch: Path) -> None:
    """Compare ways to evict from a tree of many small files.

    `kvtier evict`, `find -delete` and removal in the order of discovery each get an identical tree
    and remove equally many files. Rows compare their cost and the hit rate of later reads. Fails if
    a row misses its target.
    """
    rows = evict_bench.run(json_path, scratch, Console(), files=files, seed=seed)
    if any(row.met is False for row in rows):
        raise click.ClickException("a row of the eviction run misses its target")


@bench.command(
    "router",
    epilog=example(
        "router --json benchmarks/results/router-today.json",
        "router --part sim --seed 2",
        "router --part engines --workload replicas --rounds 1",
    ),
)
@json_option()
@click.option(
    "--part",
    "parts",
    type=click.Choice(router_bench.PARTS),
    multiple=True,
    default=router_bench.PARTS,
    show_default=True,
    help="Part to measure; repeat the option for several.",
)
@count_option("--rounds", 5, "Rounds of the parts http, epp and engines.")
@seed_option("Seed of the sessions (sim) and of the arrivals (engines).")
@click.option(
    "--peer",
    type=FILE,
    default=ROUTER_PEER,
    show_default=True,
    help="Program of vllm-router to compare with; without it, only kvtier is measured.",
)
@click.option(
    "--envoy",
    type=FILE,
    default=router_bench.ENVOY,
    show_default=True,
    help="Program of Envoy; without it, the part epp is skipped.",
)
@click.option(
    "--examples",
    type=FOLDER,
    default=PROFILES,
    show_default=True,
    help="Folder of the router configurations that are compared.",
)
@model_option("Folder of the model that the real replicas serve (engines).")
@click.option(
    "--workload",
    "workload_name",
    default=router_bench.TRAFFIC.stem,
    show_default=True,
    help="Workload file for the real replicas (engines), without .yaml; it sets when requests "
    "arrive.",
)
@workloads_option()
@scratch_option("Folder for the logs of routers and engines.")
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
    r"""Measure the router's parts, alone and before real engines.

    \b
    http     CPU per request, added latency and idle streams of `kvtier route`
    epp      CPU and latency of the endpoint picker behind a real Envoy
    index    lookups, events and memory of the prefix indexes
    sim      64 simulated replicas under every example configuration
    engines  time to first token before two real engines (about 20 minutes)

    The routers of http and engines take turns in every round.
    """
    setting = router_bench.RouterSetting(
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


@bench.command(
    "engine",
    epilog=example(
        "engine --json benchmarks/results/engine-today.json",
        "engine --rounds 1 --workload low --row vllm-alone --row kvtier-ram",
    ),
)
@json_option("Also write the rows, and the runs behind them, to this report file.")
@model_option()
@count_option("--rounds", 5, "Rounds; in each, every contestant runs every workload.")
@seed_option("Seed of the first round's order of contestants and requests; later rounds count up.")
@click.option(
    "--workload",
    "workload_names",
    multiple=True,
    default=("high-1.2", "high-1.7", "low"),
    show_default=True,
    help="Workload file without .yaml; repeat the option for several.",
)
@click.option(
    "--row",
    "contestants",
    multiple=True,
    default=tuple(lineup(Path())),
    show_default=True,
    help="Contestant to run; repeat the option for several.",
)
@workloads_option()
@click.option(
    "--peers",
    type=FOLDER,
    default=PEERS,
    show_default=True,
    help="Folder with the CPU worker for vLLM's own tiering.",
)
@scratch_option("Folder for logs and disk tiers; put it on a real disk.")
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
    """Compare real vLLM without and with kvtier.

    The contestants are vLLM alone, with its own tiering, with kvtier on RAM, with kvtier on RAM and
    disk, and with a device cache that holds everything. One server runs at a time, contestants take
    turns in every round, and caches are emptied before each run. The report file is rewritten after
    every round, so an interrupted benchmark keeps the rounds that it finished.
    """
    plan = engine_bench.EnginePlan(
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


@bench.command("forked", epilog=example("forked --json benchmarks/results/forked.json"))
@json_option("Also write the rows, and the times behind them, to this report file.")
@model_option()
@count_option("--prompts", 20, "Prompts that each server answers.", minimum=2)
@scratch_option("Folder for the logs.")
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


@bench.command("ttft", epilog=example("ttft --json benchmarks/results/ttft-today.json"))
@json_option("Also write the rows, and the times behind them, to this report file.")
@model_option()
@count_option("--repeats", 5, "Prompts of each length.")
@scratch_option("Folder for logs, disk tier and shared folder; put it on a real disk.")
def ttft(json_path: Path | None, model: Path, repeats: int, scratch: Path) -> None:
    """Measure time to first token by where the prefix is.

    A prefix is cold, on the device, in RAM, on disk, or in a shared folder. Starts real vLLM three
    times, one server at a time, and takes about six minutes. Run it as root to drop the page cache
    before the reads from disk; otherwise the rows say that it was kept.
    """
    console = Console()
    rows, details = measure_ttft(
        model, model_encoder(model), Steps(console, 3), repeats=repeats, scratch=scratch
    )
    _keep(json_path, report("ttft", rows, details))
    _print_verdicts(console, rows)


@bench.command("demo", epilog=example("demo --output /tmp/kvtier-demo"))
@model_option()
@click.option(
    "--output",
    type=FOLDER,
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


def _keep(json_path: Path | None, content: BenchmarkReport) -> None:
    if json_path is not None:
        write_report(json_path, content)


def _print_verdicts(console: Console, rows: list[Row]) -> None:
    for row in rows:
        if row.met is not None:
            console.print(describe(row))
