"""Runs of a schedule through one router before real engines, and the rows made of them.

Invariant: a run begins and ends with idle replicas, so that what they count in between belongs to
the run. Rounds are paired: within one, all routers had the same requests at the same moments. A
row's value is the median over the rounds, and its note gives the spread.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec

from kvtier.clock import Clock
from kvtier_bench.client import ServerAddress
from kvtier_bench.router.contest import OTHERS, OURS, RunningRouter
from kvtier_bench.router.engine_replicas import Counters, EngineReplica, read_counters
from kvtier_bench.router.traffic import Arrival, ArrivalResult, send
from kvtier_bench.rows import Row, Target, measured
from kvtier_bench.runs import RunSummary, summarize
from kvtier_bench.server import HOST, ServerFailed
from kvtier_bench.verdict import spread_text

SETTLE_S: Final = 2.0
"""Time for writes below the device, for their events, and for the routers' next scrape."""
SOONER: Final = Target("<=", 1)
NONE: Final = Target("<=", 0)
_PREFIX: Final = "real replicas"


class RouterRun(msgspec.Struct, frozen=True, kw_only=True):
    """The measurements of one router in one round."""

    summary: RunSummary
    p50_ttft_s: float
    by_replica: list[int]
    """The number of requests that each replica answered."""
    errors: int
    """The number of requests that were refused or broken off."""
    wrong: int
    """The number of answers whose prompt or output length is not the requested one."""
    router_cpu_s: float
    answers: list[ArrivalResult]


RouterRuns = dict[str, list[RouterRun]]
"""RouterRuns of each contestant in the order of the rounds, so that equal positions are paired."""


def run_schedule(
    router: RunningRouter,
    engines: Sequence[EngineReplica],
    arrivals: Sequence[Arrival],
    output_len: int,
    clock: Clock,
) -> RouterRun:
    """Send the schedule through `router`, wait for all answers, and return the run.

    Raises ServerFailed if no request was answered.
    """
    endpoint = ServerAddress(HOST, router.port, engines[0].server.endpoint.model)
    before, cpu_before_s = [read_counters(engine) for engine in engines], router.cpu_s()
    started_s = clock.now_s()
    answers = send(endpoint, arrivals, output_len, clock)
    wall_s = clock.now_s() - started_s
    clock.sleep(SETTLE_S)
    after, cpu_s = [read_counters(engine) for engine in engines], router.cpu_s()
    found = [one.completion for one in answers if one.completion is not None]
    if not found:
        raise ServerFailed(f"{router.name} answered no request: {answers[0].error}")
    spent_s = sum(now.cpu_s - then.cpu_s for now, then in zip(after, before, strict=True))
    return RouterRun(
        summary=summarize(found, wall_s, spent_s, _hits(before, after)),
        p50_ttft_s=statistics.median(one.ttft_s for one in found),
        by_replica=[
            round(now.requests - then.requests) for now, then in zip(after, before, strict=True)
        ],
        errors=len(answers) - len(found),
        wrong=count_wrong(arrivals, answers, output_len),
        router_cpu_s=cpu_s - cpu_before_s,
        answers=list(answers),
    )


def count_wrong(
    arrivals: Sequence[Arrival], answers: Sequence[ArrivalResult], output_len: int
) -> int:
    """Return how many of the answers have another prompt or output length than requested."""
    return sum(
        (told.prompt_tokens, told.output_tokens) != (asked.tokens, output_len)
        for asked, answer in zip(arrivals, answers, strict=True)
        if (told := answer.completion) is not None
    )


def _hits(before: Sequence[Counters], after: Sequence[Counters]) -> dict[str, float]:
    """Return the prompt tokens that each tier below the device served, over all replicas."""
    hits: dict[str, float] = {}
    for then, now in zip(before, after, strict=True):
        for tier, tokens in now.hits.items():
            hits[tier] = hits.get(tier, 0.0) + tokens - then.hits.get(tier, 0.0)
    return hits


def engine_rows(runs: RouterRuns, different: Mapping[str, int]) -> list[Row]:
    """Return rows of kvtier against each other router, then the measurements of every router."""
    rows = [
        _against(runs, ours, other)
        for ours in OURS
        for other in OTHERS
        if runs.get(ours) and runs.get(other)
    ]
    for name, taken in runs.items():
        if taken:
            rows += _of_one(name, taken, different.get(name, 0))
    return rows


def _against(runs: RouterRuns, ours: str, other: str) -> Row:
    mine, theirs = _means_s(runs[ours]), _means_s(runs[other])
    ratios = [one / two for one, two in zip(mine, theirs, strict=False)]
    return measured(
        f"{_PREFIX}, {ours} against {other}: mean TTFT",
        statistics.median(mine),
        "s",
        reference=statistics.median(theirs),
        target=SOONER,
        note=f"medians; per-round ratio {spread_text(ratios)}",
    )


def _of_one(name: str, taken: Sequence[RouterRun], different: int) -> Iterator[Row]:
    times = {
        "mean TTFT": _means_s(taken),
        "p50 TTFT": [run.p50_ttft_s for run in taken],
        "p90 TTFT": [run.summary.p90_ttft_s for run in taken],
    }
    for measure, values in times.items():
        yield measured(
            f"{_PREFIX}, {name}: {measure}",
            statistics.median(values),
            "s",
            note=spread_text(values),
        )
    tiers = dict.fromkeys(tier for run in taken for tier in run.summary.hit_rates)
    for tier in tiers:
        shares = [run.summary.hit_rates.get(tier, 0.0) for run in taken]
        yield measured(
            f"{_PREFIX}, {name}: hit rate, {tier}",
            statistics.median(shares),
            "of prompt tokens",
            note=spread_text(shares),
        )
    busiest = [max(run.by_replica) / max(1, sum(run.by_replica)) for run in taken]
    yield measured(
        f"{_PREFIX}, {name}: requests at the busier replica",
        statistics.median(busiest),
        "of requests",
        note=f"by round: {[run.by_replica for run in taken]}",
    )
    yield measured(
        f"{_PREFIX}, {name}: requests that failed, or were answered otherwise than asked",
        sum(run.errors + run.wrong for run in taken) + different,
        "requests",
        target=NONE if name in OURS else None,
        note=f"of {sum(len(run.answers) for run in taken)}; "
        f"{different} of a sample differ from the replicas' own answers",
    )


def _means_s(taken: Sequence[RouterRun]) -> list[float]:
    return [run.summary.mean_ttft_s for run in taken]
