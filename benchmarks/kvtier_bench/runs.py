"""One run: a workload sent to one server, and what it came to.

Invariants: a run starts with every cache empty and under its own salt, so that nothing of an
earlier run can be hit; CPU seconds include what the engine does just after the last answer.
"""

import statistics
from collections.abc import Iterable, Sequence

import msgspec
from prometheus_client.samples import Sample

from kvtier.clock import Clock, MonotonicClock, perf_s, unique_id
from kvtier.metrics import engine as metrics
from kvtier_bench.client import CompletionResult, complete_all
from kvtier_bench.server import Server
from kvtier_bench.workload import Workload, WorkloadPrompt

SETTLE_S = 1.0
"""Time for the last saves, and for the last counters to reach /metrics."""

HIT_TOKENS = f"{metrics.HIT_TOKENS.name}_total"
EXTERNAL_HITS = "vllm:external_prefix_cache_hits_total"


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of one run. `tokens_per_s` counts prompt and output tokens together."""

    mean_ttft_s: float
    p90_ttft_s: float
    mean_e2e_s: float
    p90_e2e_s: float
    tokens_per_s: float
    cpu_s_per_request: float
    hit_rates: dict[str, float]
    """Share of all prompt tokens that each tier served: `device`, `ram`, `disk`..."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A run with its answers, by `WorkloadPrompt.label`."""

    summary: RunSummary
    texts: dict[str, str]


def run_workload(
    server: Server,
    workload: Workload,
    prompts: Sequence[WorkloadPrompt],
    *,
    salt: str = "",
    clock: Clock | None = None,
) -> Run:
    """Send `prompts` in order and measure. Blocks for the whole run.

    The salt keeps this run's blocks to itself: its own unless one is given, in order to find
    an earlier run's blocks again.
    """
    clock = clock or MonotonicClock()
    tokens = [prompt.tokens for prompt in prompts]
    hits_before, cpu_before_s = lower_tier_hits(server.metrics()), server.cpu_s()
    started_s = perf_s()
    answers = complete_all(
        server.endpoint, tokens, workload.output_len, workload.concurrency, salt or unique_id()
    )
    wall_s = perf_s() - started_s
    clock.sleep(SETTLE_S)
    cpu_s = server.cpu_s() - cpu_before_s
    hits_after = lower_tier_hits(server.metrics())
    hits = {tier: count - hits_before.get(tier, 0.0) for tier, count in hits_after.items()}
    texts = {prompt.label: answer.text for prompt, answer in zip(prompts, answers, strict=True)}
    return Run(summary=summarize(answers, wall_s, cpu_s, hits), texts=texts)


def summarize(
    answers: Sequence[CompletionResult], wall_s: float, cpu_s: float, hits: dict[str, float]
) -> RunSummary:
    """Answers of one run into its numbers; `hits` are prompt tokens by lower tier."""
    prompt_tokens = sum(answer.prompt_tokens for answer in answers)
    output_tokens = sum(answer.output_tokens for answer in answers)
    cached_tokens = sum(answer.cached_tokens for answer in answers)
    # What the engine reused and no lower tier brought was on the device already.
    by_tier = {"device": max(0.0, cached_tokens - sum(hits.values())), **hits}
    return RunSummary(
        mean_ttft_s=statistics.fmean(answer.ttft_s for answer in answers),
        p90_ttft_s=percentile([answer.ttft_s for answer in answers], 90),
        mean_e2e_s=statistics.fmean(answer.e2e_s for answer in answers),
        p90_e2e_s=percentile([answer.e2e_s for answer in answers], 90),
        tokens_per_s=(prompt_tokens + output_tokens) / wall_s,
        cpu_s_per_request=cpu_s / len(answers),
        hit_rates={tier: count / prompt_tokens for tier, count in by_tier.items()},
    )


def lower_tier_hits(samples: Iterable[Sample]) -> dict[str, float]:
    """WorkloadPrompt tokens served by each tier below the device since the server started.

    By tier where kvtier counts them; for any other connector all of them as `ram`.
    """
    by_tier: dict[str, float] = {}
    external = 0.0
    for sample in samples:
        if sample.name == HIT_TOKENS:
            tier = sample.labels["tier"]
            by_tier[tier] = by_tier.get(tier, 0.0) + sample.value
        elif sample.name == EXTERNAL_HITS:
            external += sample.value
    if by_tier or not external:
        return by_tier
    return {"ram": external}


def percentile(values: Sequence[float], percent: int) -> float:
    """Interpolated between the two nearest values; the value itself where there is one."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def median_summary(runs: Sequence[RunSummary]) -> RunSummary:
    """Field by field the median over repeated runs of one thing."""
    tiers = {tier for run in runs for tier in run.hit_rates}
    medians = {
        name: statistics.median(getattr(run, name) for run in runs)
        for name in RunSummary.__struct_fields__
        if name != "hit_rates"
    }
    hit_rates = {
        tier: statistics.median(run.hit_rates.get(tier, 0.0) for run in runs)
        for tier in sorted(tiers)
    }
    return RunSummary(**medians, hit_rates=hit_rates)


def disagreements(texts: dict[str, str], reference: dict[str, str]) -> int:
    """Requests answered by both whose greedy outputs differ."""
    shared = texts.keys() & reference.keys()
    return sum(texts[label] != reference[label] for label in shared)
