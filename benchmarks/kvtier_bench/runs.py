"""One run: a workload that is sent to one server, and its summary.

Invariants: a run has a salt of its own, unless it is meant to find an earlier run's blocks; CPU
seconds include the work that the engine does just after the last answer.
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
"""Time for the last saves to finish and the last counters to reach /metrics."""

HIT_TOKENS = f"{metrics.HIT_TOKENS.name}_total"
EXTERNAL_HITS = "vllm:external_prefix_cache_hits_total"


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The measurements of one run. `tokens_per_s` counts prompt and output tokens together."""

    mean_ttft_s: float
    p90_ttft_s: float
    mean_e2e_s: float
    p90_e2e_s: float
    tokens_per_s: float
    cpu_s_per_request: float
    hit_rates: dict[str, float]
    """The share of all prompt tokens that each tier served, such as `device` and `ram`."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """The summary of a run, and its answers by `WorkloadPrompt.label`."""

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
    """Send `prompts` in order, wait for all answers, and return the measured run.

    By default the run gets a salt of its own, so that it finds no blocks of other runs. Pass the
    `salt` of an earlier run to find its blocks again.
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
    """Return the summary of a run; `hits` are the prompt tokens that each lower tier served."""
    prompt_tokens = sum(answer.prompt_tokens for answer in answers)
    output_tokens = sum(answer.output_tokens for answer in answers)
    cached_tokens = sum(answer.cached_tokens for answer in answers)
    # Tokens that the engine reused and no lower tier served were on the device already.
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
    """Return the prompt tokens that each tier below the device served since the server started.

    Only kvtier counts by tier; for any other connector all tokens are counted as `ram`.
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
    """Return the percentile, interpolated between the two nearest values."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def median_summary(runs: Sequence[RunSummary]) -> RunSummary:
    """Return the median of each field over repeated runs."""
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
    """Return how many of the requests that both runs answered have different outputs."""
    shared = texts.keys() & reference.keys()
    return sum(texts[label] != reference[label] for label in shared)
