"""Routers before real replicas: the shared-prefix workload of the CPU-offloading guide.

Two engines are started once, and all routers once before them. The comparison is fair because in
each round every router gets the same groups, questions and arrival times, but in different words,
so that none finds blocks that another one's requests left; the engines' caches are full of
unrelated blocks when a run begins; the order of the routers rotates by one each round; every answer
is counted; and a sample of answers is compared with the replicas' own.

The arrival rate is a share of the replicas' capacity, which is measured first, with every prefix
computed once, groups dealt evenly and always some requests in flight. So the load is comparable on
any machine.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from kvtier.clock import Clock, MonotonicClock
from kvtier_bench.client import ServerAddress, complete, complete_all
from kvtier_bench.progress import Steps
from kvtier_bench.router import contest
from kvtier_bench.router.contest import RunningRouter, commands_before_engines
from kvtier_bench.router.engine_replicas import EngineReplica, replicas
from kvtier_bench.router.engine_runs import SETTLE_S, RouterRuns, engine_rows, run_schedule
from kvtier_bench.router.traffic import Arrival, Schedule, Traffic
from kvtier_bench.rows import Row
from kvtier_bench.server import HOST, ServerFailed
from kvtier_bench.workload import Decode, Encode, distinct_prompts

STEPS: Final = 2
"""The number of displayed steps, besides one for each round."""
SAMPLED: Final = 4
"""Prompts whose answers are compared. Their requests also open every router's connections."""
_FILLING: Final = 2
"""Requests in flight to each replica while its caches are filled."""
_IN_FLIGHT: Final = 4
"""Requests in flight to each replica while capacity is measured; enough for batched decoding."""


class RouterPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The traffic and rounds to measure.

    Logs go to `scratch`; `examples` contains the guide's router profile.
    """

    model: Path
    traffic: Traffic
    rounds: int
    seed: int
    scratch: Path
    examples: Path
    peer: Path = contest.PEER


Measured = tuple[list[Row], dict[str, Any]]
"""Rows, and the details behind them."""


class Calibration(NamedTuple):
    """The results of the measurements before the first round."""

    most_per_minute: float
    """The replicas' capacity, in requests per minute."""
    per_minute: float
    """The arrival rate of the rounds."""
    different: Mapping[str, int]
    """For each router, how many answers of the sample differ from the replicas' own."""


def measure_engines(
    plan: RouterPlan,
    encode: Encode,
    decode: Decode,
    steps: Steps,
    keep: Callable[[Measured], None],
    clock: Clock | None = None,
) -> Measured:
    """Run the whole plan and return its rows; call `keep` with those so far after every round.

    Raises ServerFailed if an engine or a router does not start, or a router answers no request.
    """
    clock = clock or MonotonicClock()
    plan.scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
    with ExitStack() as stack:
        with steps.step("start two engines, about a minute"):
            engines = stack.enter_context(replicas(plan.model, plan.traffic, plan.scratch))
        with steps.step("fill caches, measure capacity, compare a sample of answers"):
            commands = commands_before_engines(
                engines, plan.model, peer=plan.peer, examples=plan.examples, scratch=plan.scratch
            )
            running = stack.enter_context(contest.started(commands, plan.scratch))
            check_all(commands, running, plan.scratch)
            fill(engines, plan.traffic, encode)
            first = Schedule(plan.traffic, encode, decode, plan.seed, 1.0).edition(0)
            calibration = calibrate(engines, running, first, plan.traffic, clock)
        runs: RouterRuns = {router.name: [] for router in running}
        for number in range(plan.rounds):
            with steps.step(f"round {number + 1} of {plan.rounds}"):
                schedule = Schedule(
                    plan.traffic, encode, decode, plan.seed + number, calibration.per_minute
                )
                for place, router in enumerate(rotated(running, number)):
                    steps.tell(router.name)
                    arrivals = schedule.edition(1 + number * len(running) + place)
                    runs[router.name].append(
                        run_schedule(router, engines, arrivals, plan.traffic.output_len, clock)
                    )
            measured = engine_rows(runs, calibration.different), details(plan, runs, calibration)
            keep(measured)
    return measured


def check_all(wanted: Iterable[str], running: Sequence[RunningRouter], scratch: Path) -> None:
    """Raise ServerFailed before the rounds if one of the wanted routers does not run."""
    missing = set(wanted) - {router.name for router in running}
    if missing:
        raise ServerFailed(f"{min(missing)} did not start: see its log in {scratch}")


def calibrate(
    engines: Sequence[EngineReplica],
    running: Sequence[RunningRouter],
    arrivals: Sequence[Arrival],
    traffic: Traffic,
    clock: Clock,
) -> Calibration:
    """Measure the replicas' capacity, and compare a sample of answers."""
    endpoints = [engine.server.endpoint for engine in engines]
    most = requests_per_minute(endpoints, arrivals, traffic.output_len, clock)
    different = compare(engines, running, arrivals[:SAMPLED], traffic.output_len)
    clock.sleep(SETTLE_S)
    return Calibration(most, most * traffic.busy_percent / 100, different)


def rotated(running: Sequence[RunningRouter], by: int) -> list[RunningRouter]:
    """Return the routers rotated by `by` places, so that each is equally often the first."""
    first = by % len(running)
    return [*running[first:], *running[:first]]


def fill(engines: Sequence[EngineReplica], traffic: Traffic, encode: Encode) -> None:
    """Fill every tier of every replica with prompts that are not requested again.

    This also warms up the engines, and gives routers time to learn the replicas' rates.
    """
    tokens = (traffic.device_blocks + traffic.ram_blocks) * traffic.block_tokens
    length = traffic.system_prompt_len
    prompts = distinct_prompts(encode, [length] * -(-tokens // length))
    with ThreadPoolExecutor(_FILLING * len(engines)) as pool:
        pending = [
            pool.submit(complete, engine.server.endpoint, prompt, 1)
            for prompt in prompts
            for engine in engines
        ]
        for one in pending:
            one.result()


def compare(
    engines: Sequence[EngineReplica],
    running: Sequence[RunningRouter],
    sample: Sequence[Arrival],
    output_len: int,
) -> Mapping[str, int]:
    """Return for each router how many of its answers no replica gives when asked directly.

    By then every replica has the prompts, so that all of them compute the same.
    """
    model = engines[0].server.endpoint.model
    different = dict.fromkeys((router.name for router in running), 0)
    for asked in sample:
        known = set()
        for engine in engines:
            complete(engine.server.endpoint, asked.text, output_len)
            known.add(complete(engine.server.endpoint, asked.text, output_len).text)
        for router in running:
            answer = complete(ServerAddress(HOST, router.port, model), asked.text, output_len)
            different[router.name] += answer.text not in known
    return different


def details(plan: RouterPlan, runs: RouterRuns, calibration: Calibration) -> dict[str, Any]:
    """Return everything that was measured, for each request."""
    return {
        "traffic": msgspec.to_builtins(plan.traffic),
        "seed": plan.seed,
        "rounds_planned": plan.rounds,
        "opening": calibration._asdict(),
        "runs": {name: [msgspec.to_builtins(run) for run in each] for name, each in runs.items()},
    }


def requests_per_minute(
    endpoints: Sequence[ServerAddress], arrivals: Sequence[Arrival], output_len: int, clock: Clock
) -> float:
    """Send all requests to the replicas directly; return how many they answered per minute.

    Raises RequestFailed.
    """
    shares = deal(arrivals, len(endpoints))
    started_s = clock.now_s()
    with ThreadPoolExecutor(len(endpoints)) as pool:
        pending = [
            pool.submit(complete_all, endpoint, share, output_len, _IN_FLIGHT)
            for endpoint, share in zip(endpoints, shares, strict=True)
        ]
        for one in pending:
            one.result()
    return len(arrivals) * 60.0 / (clock.now_s() - started_s)


def deal(arrivals: Sequence[Arrival], count: int) -> list[list[str]]:
    """Return each replica's prompts. A group stays on one replica, its first prompt well ahead."""
    shares: list[list[str]] = [[] for _ in range(count)]
    for arrival in sorted(arrivals, key=lambda one: one.question):
        shares[arrival.group % count].append(arrival.text)
    return shares
