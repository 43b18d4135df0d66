"""The engine benchmark: every contestant runs every workload in every round.

The comparison is fair because one server runs at a time, all with equal flags; each round starts
every contestant anew, in an order shuffled by the round's seed; the order of requests is the same
for all contestants of a round and differs between rounds; caches are emptied before each run; and a
warm-up precedes the first run. The report is rewritten after every round, so that an interrupted
benchmark keeps its finished rounds.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from kvtier.clock import Clock, MonotonicClock, seeded
from kvtier.errors import InvalidSettings
from kvtier_bench.client import complete
from kvtier_bench.lineup import LIMIT_BLOCKS, Contestant, lineup
from kvtier_bench.progress import Steps
from kvtier_bench.rows import BenchmarkReport, Row, report
from kvtier_bench.runs import Run, RunSummary, median_summary, run_workload
from kvtier_bench.server import Server, ServerSettings
from kvtier_bench.verdict import Runs, workload_rows
from kvtier_bench.workload import Encode, Workload, WorkloadPrompt, build_prompts, distinct_prompts

WARM_UP_LENGTHS = [1500, 700, 1100]


class EnginePlan(msgspec.Struct, frozen=True, kw_only=True):
    """The workloads, contestants and rounds to measure.

    `scratch` is the folder for logs and disk tiers; `peers` the one with other systems' specs.
    """

    model: Path
    workloads: list[Workload]
    contestants: list[str]
    rounds: int
    seed: int
    scratch: Path
    peers: Path

    def check(self) -> None:
        """Raise InvalidSettings for a plan that cannot give a fair comparison."""
        known = lineup(self.scratch)
        unknown = [name for name in self.contestants if name not in known]
        if unknown:
            raise InvalidSettings(f"unknown contestant {unknown[0]!r}: one of {', '.join(known)}")
        sizes = {workload.device_blocks for workload in self.workloads}
        if len(sizes) != 1:
            raise InvalidSettings(
                "the workloads of one comparison must be sized against one device cache; "
                f"device_blocks are {sorted(sizes)}"
            )
        for workload in self.workloads:
            if workload.working_set_blocks >= LIMIT_BLOCKS:
                raise InvalidSettings(
                    f"{workload.name} needs {workload.working_set_blocks} blocks, and the limit "
                    f"row has only {LIMIT_BLOCKS}: use fewer groups or shorter prefixes"
                )


class Measurements:
    """The runs so far, by workload and contestant."""

    def __init__(self, plan: EnginePlan) -> None:
        self._plan = plan
        self.runs: dict[str, Runs] = {workload.name: {} for workload in plan.workloads}

    def add(self, workload: str, contestant: str, run: Run) -> None:
        """Add one run of a contestant."""
        self.runs[workload].setdefault(contestant, []).append(run)

    def rows(self) -> list[Row]:
        """Return the rows over all rounds so far."""
        rows: list[Row] = []
        for workload in self._plan.workloads:
            fits = workload.working_set_ratio <= 1
            ordered = self._ordered(self.runs[workload.name])
            rows += workload_rows(workload.name, ordered, fits_device=fits)
        return rows

    def medians(self, workload: str) -> list[tuple[str, RunSummary]]:
        """Return title and median run of every contestant so far, in the order of the lineup."""
        titles = lineup(self._plan.scratch)
        return [
            (titles[name].title, median_summary([run.summary for run in runs]))
            for name, runs in self._ordered(self.runs[workload]).items()
        ]

    def report(self) -> BenchmarkReport:
        """Return a report with the rows and the numbers of every run."""
        details: dict[str, Any] = {
            "workloads": [msgspec.to_builtins(workload) for workload in self._plan.workloads],
            "rounds_planned": self._plan.rounds,
            "seed": self._plan.seed,
            "runs": {
                workload: {
                    name: [msgspec.to_builtins(run.summary) for run in runs]
                    for name, runs in by_name.items()
                }
                for workload, by_name in self.runs.items()
            },
        }
        return report("engine", self.rows(), details)

    def _ordered(self, runs: Runs) -> Runs:
        return {name: runs[name] for name in lineup(self._plan.scratch) if name in runs}


def measure(
    plan: EnginePlan,
    encode: Encode,
    steps: Steps,
    keep: Callable[[Measurements], None],
    clock: Clock | None = None,
) -> Measurements:
    """Run the whole plan and return its measurements; call `keep` after every round."""
    plan.check()
    clock = clock or MonotonicClock()
    measurements = Measurements(plan)
    for round_number in range(plan.rounds):
        seed = plan.seed + round_number
        orders = {each.name: _orders(each, encode, seed) for each in plan.workloads}
        order = list(plan.contestants)
        seeded(seed).shuffle(order)
        for name in order:
            title = f"round {round_number + 1}: {name}"
            with steps.step(title):
                _measure_contestant(plan, name, orders, encode, steps, measurements, clock)
        keep(measurements)
    return measurements


def _measure_contestant(
    plan: EnginePlan,
    name: str,
    orders: dict[str, list[list[WorkloadPrompt]]],
    encode: Encode,
    steps: Steps,
    measurements: Measurements,
    clock: Clock,
) -> None:
    plan.scratch.mkdir(parents=True, exist_ok=True)
    # A disk tier survives restarts; in a new folder no round finds the blocks of an earlier one.
    with (
        tempfile.TemporaryDirectory(dir=plan.scratch, prefix="disk-") as disk,
        Server(server_settings(plan, lineup(Path(disk).resolve())[name])) as server,
    ):
        server.start(steps.tell)
        warm_up(server, encode)
        for workload in plan.workloads:
            for prompts in orders[workload.name]:
                steps.tell(f"{workload.name}: {workload.requests} requests")
                server.reset_all()
                run = run_workload(server, workload, prompts, clock=clock)
                measurements.add(workload.name, name, run)


def _orders(workload: Workload, encode: Encode, seed: int) -> list[list[WorkloadPrompt]]:
    """Return the prompts of each run of a round, in orders that are equal for all contestants."""
    first = seed * workload.runs_per_round
    return [
        build_prompts(workload, encode, first + number) for number in range(workload.runs_per_round)
    ]


def server_settings(plan: EnginePlan, contestant: Contestant) -> ServerSettings:
    """Return a contestant's settings; only connector, device cache and PYTHONPATH differ."""
    return ServerSettings(
        model=plan.model,
        device_blocks=contestant.device_blocks or plan.workloads[0].device_blocks,
        log=plan.scratch / f"{contestant.name}.log",
        kv_transfer=contestant.kv_transfer,
        python_path=(plan.peers.resolve(),) if contestant.needs_peers else (),
    )


def warm_up(server: Server, encode: Encode, lengths: Sequence[int] = WARM_UP_LENGTHS) -> None:
    """Take every code path once before the timing: prefill, decode, save, device hit and load."""
    for prompt in distinct_prompts(encode, list(lengths)):
        complete(server.endpoint, prompt, output_len=8, salt="warm-up")
        complete(server.endpoint, prompt, output_len=8, salt="warm-up")
        server.reset_device()
        complete(server.endpoint, prompt, output_len=8, salt="warm-up")
