"""From runs before real replicas to rows: how soon the first token came, and from where.

Rounds are paired: within one, everybody had the same requests at the same moments. A row's value
is the median over rounds, its note the spread. Targets are stated before measuring.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from kvtier_bench.router.engineruns import Run
from kvtier_bench.router.fronts import OTHERS, OURS
from kvtier_bench.rows import Row, Target, measured
from kvtier_bench.verdict import spread_text

Runs = dict[str, list[Run]]
"""By contestant, in the order of rounds; equal places pair up."""

SOONER: Final = Target("<=", 1)
NONE: Final = Target("<=", 0)
_PREFIX: Final = "real replicas"


def engine_rows(runs: Runs, different: Mapping[str, int]) -> list[Row]:
    """First ours against each of the others, then what everyone did."""
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


def _against(runs: Runs, ours: str, other: str) -> Row:
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


def _of_one(name: str, taken: Sequence[Run], different: int) -> Iterator[Row]:
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
        f"{different} of a sample differ from what the replicas say themselves",
    )


def _means_s(taken: Sequence[Run]) -> list[float]:
    return [run.summary.mean_ttft_s for run in taken]
