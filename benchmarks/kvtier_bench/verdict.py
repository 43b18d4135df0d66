"""The rows of the engine benchmark: what each contestant gains, and whether it meets its target.

Rounds are paired: a round's ratio compares servers that ran within the same quarter of an hour. A
row's value is the median over the rounds, and its note gives the spread. Targets are constants,
chosen before measuring.
"""

import statistics
from collections.abc import Sequence

from kvtier_bench.lineup import ALONE, KVTIER_DISK, KVTIER_RAM, LIMIT, NATIVE
from kvtier_bench.rows import Row, Target, measured
from kvtier_bench.runs import Run, disagreements, median_summary

Runs = dict[str, list[Run]]
"""Each contestant's runs of one workload in the order of the rounds; equal positions are paired."""

GAP_CLOSED = Target(">=", 0.90)
CPU_OVERHEAD = Target("<=", 1.01)
JUDGED = ("tokens_per_s", "mean_ttft_s")
OURS = (KVTIER_RAM, KVTIER_DISK)

MEASURES = {
    "mean_ttft_s": "s",
    "p90_ttft_s": "s",
    "mean_e2e_s": "s",
    "p90_e2e_s": "s",
    "tokens_per_s": "tokens/s",
    "cpu_s_per_request": "s",
}
HIGHER_IS_BETTER = {"tokens_per_s"}


def workload_rows(workload: str, runs: Runs, *, fits_device: bool) -> list[Row]:
    """Return every row of one workload, without the contestants that did not run."""
    rows = [row for name in runs for row in _measure_rows(workload, name, runs)]
    for name in (each for each in OURS if each in runs):
        if fits_device:
            rows += _overhead_rows(workload, name, runs)
        else:
            rows += _gain_rows(workload, name, runs)
    return rows


def _measure_rows(workload: str, name: str, runs: Runs) -> list[Row]:
    rows = []
    medians = median_summary([run.summary for run in runs[name]])
    alone = runs.get(ALONE) if name != ALONE else None
    baseline = median_summary([run.summary for run in alone]) if alone else None
    for measure, unit in MEASURES.items():
        rows.append(
            measured(
                f"{workload}/{name}/{measure}",
                getattr(medians, measure),
                unit,
                reference=getattr(baseline, measure) if baseline else None,
                note=spread_text(values_of(runs[name], measure)),
            )
        )
    for tier, share in medians.hit_rates.items():
        rows.append(measured(f"{workload}/{name}/hit_rate/{tier}", share, "of prompt tokens"))
    if alone:
        pairs = list(zip(runs[name], alone, strict=False))
        different = sum(disagreements(ours.texts, theirs.texts) for ours, theirs in pairs)
        total = sum(len(ours.texts) for ours, _ in pairs)
        rows.append(
            measured(
                f"{workload}/{name}/outputs_different",
                different,
                "requests",
                note=f"of {total}, greedy, against {ALONE}; see outputs_different of {LIMIT} "
                "for what chunk shapes alone change",
            )
        )
    return rows


def _gain_rows(workload: str, name: str, runs: Runs) -> list[Row]:
    rows = []
    for measure in (*JUDGED, "cpu_s_per_request"):
        if ALONE in runs and LIMIT in runs:
            alone, limit = values_of(runs[ALONE], measure), values_of(runs[LIMIT], measure)
            ours = values_of(runs[name], measure)
            shares = [gap_closed(*each) for each in zip(alone, ours, limit, strict=False)]
            medians = [statistics.median(values) for values in (alone, ours, limit)]
            rows.append(
                measured(
                    f"{workload}/{name}/gap_closed/{measure}",
                    gap_closed(*medians),
                    f"of the gap from {ALONE} to {LIMIT}",
                    target=GAP_CLOSED if measure in JUDGED else None,
                    note="medians; per round " + spread_text(shares),
                )
            )
        if NATIVE in runs and measure in JUDGED:
            rows.append(_not_worse(workload, name, NATIVE, measure, runs))
    return rows


def _overhead_rows(workload: str, name: str, runs: Runs) -> list[Row]:
    if ALONE not in runs:
        return []
    ratios = paired_ratios(runs, name, ALONE, "cpu_s_per_request")
    cpu = measured(
        f"{workload}/{name}/cpu_per_request_against_alone",
        statistics.median(values_of(runs[name], "cpu_s_per_request")),
        "s",
        reference=statistics.median(values_of(runs[ALONE], "cpu_s_per_request")),
        target=CPU_OVERHEAD,
        note="medians; per-round ratio " + spread_text(ratios),
    )
    return [cpu, _not_worse(workload, name, ALONE, "tokens_per_s", runs)]


def _not_worse(workload: str, name: str, other: str, measure: str, runs: Runs) -> Row:
    ratios = paired_ratios(runs, name, other, measure)
    slack = half_spread(ratios)
    equal_or_better = (
        Target(">=", round(1 - slack, 3))
        if measure in HIGHER_IS_BETTER
        else Target("<=", round(1 + slack, 3))
    )
    return measured(
        f"{workload}/{name}/{measure}_against_{other}",
        statistics.median(values_of(runs[name], measure)),
        MEASURES[measure],
        reference=statistics.median(values_of(runs[other], measure)),
        target=equal_or_better,
        note="equal within the spread counts; per-round ratio " + spread_text(ratios),
    )


def gap_closed(alone: float, ours: float, limit: float) -> float:
    """Return the share of the gap from `alone` to `limit` that `ours` closes; 0 without a gap."""
    return (ours - alone) / (limit - alone) if limit != alone else 0.0


def values_of(runs: Sequence[Run], measure: str) -> list[float]:
    """Return one measure of every run."""
    return [getattr(run.summary, measure) for run in runs]


def paired_ratios(runs: Runs, name: str, other: str, measure: str) -> list[float]:
    """Return `name` / `other` for each round that has both and in which `other` is not 0."""
    pairs = zip(values_of(runs[name], measure), values_of(runs[other], measure), strict=False)
    return [ours / theirs for ours, theirs in pairs if theirs]


def half_spread(values: Sequence[float]) -> float:
    """Return half the distance between the quartiles; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return (upper - lower) / 2


def spread_text(values: Sequence[float]) -> str:
    """Return median, range and count, such as `median 1.02 (0.98 to 1.07, n=5)`."""
    if not values:
        return "nothing to compare"
    middle = statistics.median(values)
    return f"median {middle:.4g} ({min(values):.4g} to {max(values):.4g}, n={len(values)})"
