"""Routers before real replicas: the shared-prefix workload of the CPU-offloading guide.

Two engines are started once and all routers once, before the same two. How it keeps itself
honest: in each round every contestant gets the same groups, questions and moments of arrival in
words of its own, so that nobody finds what another had loaded; the engines' caches are full of
strangers' blocks at the start of every run; the order of contestants moves on by one each round;
every answer is counted, and a sample is compared with what the replicas say themselves.
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
from kvtier_bench.router.contest import RunningRouter, fronts
from kvtier_bench.router.engineruns import SETTLE_S, RouterRuns, engine_rows, run_schedule
from kvtier_bench.router.pair import EngineReplica, replicas
from kvtier_bench.router.traffic import Arrival, Schedule, Traffic
from kvtier_bench.rows import Row
from kvtier_bench.server import HOST, ServerFailed
from kvtier_bench.workload import Decode, Encode, distinct_prompts

STEPS: Final = 2
"""Besides one a round."""
SAMPLED: Final = 4
"""Prompts whose answers are compared; asking them opens every router's connections too."""
_FILLING: Final = 2
"""Requests at once before each replica, while its caches are filled."""
_IN_FLIGHT: Final = 4
"""On each replica: enough that decoding is batched."""


class RouterPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure. `scratch` takes logs; `examples` holds the guide's own profile."""

    model: Path
    traffic: Traffic
    rounds: int
    seed: int
    scratch: Path
    examples: Path
    peer: Path = contest.PEER


Measured = tuple[list[Row], dict[str, Any]]
"""Rows, and what is behind them."""


class Opening(NamedTuple):
    """What is known before the first round."""

    most_per_minute: float
    """Requests that the replicas could answer at best."""
    per_minute: float
    """How fast they come."""
    different: Mapping[str, int]
    """By router: answers of the sample that are not the replicas' own."""


def measure_engines(
    plan: RouterPlan,
    encode: Encode,
    decode: Decode,
    steps: Steps,
    keep: Callable[[Measured], None],
    clock: Clock | None = None,
) -> Measured:
    """Rows of the whole plan; `keep` is told after every round what there is so far.

    Raises ServerFailed where an engine does not come up, or a router answers nothing.
    """
    clock = clock or MonotonicClock()
    plan.scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
    with ExitStack() as stack:
        with steps.step("two engines start, about a minute"):
            engines = stack.enter_context(replicas(plan.model, plan.traffic, plan.scratch))
        with steps.step("caches are filled, capacity is measured, a sample is compared"):
            commands = fronts(
                engines, plan.model, peer=plan.peer, examples=plan.examples, scratch=plan.scratch
            )
            running = stack.enter_context(contest.started(commands, plan.scratch))
            check_all(commands, running, plan.scratch)
            fill(engines, plan.traffic, encode)
            first = Schedule(plan.traffic, encode, decode, plan.seed, 1.0).edition(0)
            opening = open_up(engines, running, first, plan.traffic, clock)
        runs: RouterRuns = {router.name: [] for router in running}
        for number in range(plan.rounds):
            with steps.step(f"round {number + 1} of {plan.rounds}"):
                schedule = Schedule(
                    plan.traffic, encode, decode, plan.seed + number, opening.per_minute
                )
                for place, router in enumerate(rotated(running, number)):
                    steps.tell(router.name)
                    arrivals = schedule.edition(1 + number * len(running) + place)
                    runs[router.name].append(
                        run_schedule(router, engines, arrivals, plan.traffic.output_len, clock)
                    )
            measured = engine_rows(runs, opening.different), details(plan, runs, opening)
            keep(measured)
    return measured


def check_all(wanted: Iterable[str], running: Sequence[RunningRouter], scratch: Path) -> None:
    """Raises ServerFailed where one is missing: after the rounds it would be too late."""
    missing = set(wanted) - {router.name for router in running}
    if missing:
        raise ServerFailed(f"{min(missing)} did not start: its log in {scratch} says why")


def open_up(
    engines: Sequence[EngineReplica],
    running: Sequence[RunningRouter],
    arrivals: Sequence[Arrival],
    traffic: Traffic,
    clock: Clock,
) -> Opening:
    """Measure what the replicas can do, and compare some of the same requests' answers."""
    endpoints = [engine.server.endpoint for engine in engines]
    most = requests_per_minute(endpoints, arrivals, traffic.output_len, clock)
    different = compare(engines, running, arrivals[:SAMPLED], traffic.output_len)
    clock.sleep(SETTLE_S)
    return Opening(most, most * traffic.busy_percent / 100, different)


def rotated(running: Sequence[RunningRouter], by: int) -> list[RunningRouter]:
    """The same, beginning with another: whoever comes first is first as often as others."""
    first = by % len(running)
    return [*running[first:], *running[:first]]


def fill(engines: Sequence[EngineReplica], traffic: Traffic, encode: Encode) -> None:
    """Every tier of every replica, with prompts that nobody asks for again.

    It compiles and warms what the engines need, and shows routers their rates.
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
    """By router: answers that no replica gave when it was asked itself.

    Every replica has the prompts by then, so that the same is computed whoever answers.
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


def details(plan: RouterPlan, runs: RouterRuns, opening: Opening) -> dict[str, Any]:
    """Everything that was measured, request by request."""
    return {
        "traffic": msgspec.to_builtins(plan.traffic),
        "seed": plan.seed,
        "rounds_planned": plan.rounds,
        "opening": opening._asdict(),
        "runs": {name: [msgspec.to_builtins(run) for run in each] for name, each in runs.items()},
    }


def requests_per_minute(
    endpoints: Sequence[ServerAddress], arrivals: Sequence[Arrival], output_len: int, clock: Clock
) -> float:
    """Asks the replicas themselves, all of it as fast as they can. Raises RequestFailed."""
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
    """Texts for each replica: a group stays together, and its first comes long before the rest."""
    shares: list[list[str]] = [[] for _ in range(count)]
    for arrival in sorted(arrivals, key=lambda one: one.question):
        shares[arrival.group % count].append(arrival.text)
    return shares
