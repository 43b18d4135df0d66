"""One run: a schedule sent through one router, and what became of it and of its replicas.

Invariant: a run begins and ends with replicas that have nothing to do, so that what they count
meanwhile is this run's.
"""

import statistics
from collections.abc import Sequence
from typing import Final

import msgspec

from kvtier.clock import Clock
from kvtier_bench.client import Endpoint
from kvtier_bench.router.contest import Router
from kvtier_bench.router.openloop import Answer, send
from kvtier_bench.router.pair import Counters, Replica, read_counters
from kvtier_bench.router.traffic import Arrival
from kvtier_bench.runs import RunSummary, summarize
from kvtier_bench.server import HOST, ServerFailed

SETTLE_S: Final = 2.0
"""Writes below the device, their events, the routers' next look at metrics."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One contestant in one round."""

    summary: RunSummary
    p50_ttft_s: float
    by_replica: list[int]
    """Requests that each replica has answered."""
    errors: int
    """Requests that were refused or broken off."""
    wrong: int
    """Answers of another length, or to another prompt, than asked."""
    router_cpu_s: float
    answers: list[Answer]


def run_schedule(
    router: Router,
    engines: Sequence[Replica],
    arrivals: Sequence[Arrival],
    output_len: int,
    clock: Clock,
) -> Run:
    """Blocks for the whole run. Raises ServerFailed where nothing at all was answered."""
    endpoint = Endpoint(HOST, router.port, engines[0].server.endpoint.model)
    before, cpu_before_s = [read_counters(engine) for engine in engines], router.cpu_s()
    started_s = clock.now_s()
    answers = send(endpoint, arrivals, output_len, clock)
    wall_s = clock.now_s() - started_s
    clock.sleep(SETTLE_S)
    after, cpu_s = [read_counters(engine) for engine in engines], router.cpu_s()
    found = [one.completion for one in answers if one.completion is not None]
    if not found:
        raise ServerFailed(f"{router.name} has answered nothing: {answers[0].error}")
    spent_s = sum(now.cpu_s - then.cpu_s for now, then in zip(after, before, strict=True))
    return Run(
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


def count_wrong(arrivals: Sequence[Arrival], answers: Sequence[Answer], output_len: int) -> int:
    """Of those that were answered."""
    return sum(
        (told.prompt_tokens, told.output_tokens) != (asked.tokens, output_len)
        for asked, answer in zip(arrivals, answers, strict=True)
        if (told := answer.completion) is not None
    )


def _hits(before: Sequence[Counters], after: Sequence[Counters]) -> dict[str, float]:
    """Prompt tokens by tier below the device, of all replicas together."""
    hits: dict[str, float] = {}
    for then, now in zip(before, after, strict=True):
        for tier, tokens in now.hits.items():
            hits[tier] = hits.get(tier, 0.0) + tokens - then.hits.get(tier, 0.0)
    return hits
