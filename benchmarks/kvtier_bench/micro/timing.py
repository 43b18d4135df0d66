"""Interleaved timing of contenders, compared by medians.

Interleaving makes a slower phase of the machine affect all contenders; medians make single
interruptions irrelevant.
"""

import statistics
from collections.abc import Callable, Mapping

from kvtier.clock import perf_s
from kvtier_bench.rows import Row, Target, measured


def interleave(
    contenders: Mapping[str, Callable[[], None]], rounds: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Call the contenders in turns; return the seconds of each call, without the warm-up turns."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warm_up + rounds):
        for name, call in contenders.items():
            began_s = perf_s()
            call()
            elapsed_s = perf_s() - began_s
            if turn >= warm_up:
                seconds[name].append(elapsed_s)
    return seconds


def paired_ratio(ours: list[float], reference: list[float]) -> float:
    """Return the share of the reference's speed: the median over the rounds of reference / ours."""
    return statistics.median(ref / own for own, ref in zip(ours, reference, strict=True))


def spread(seconds: list[float]) -> str:
    """Return minimum and maximum in milliseconds, for a row's note."""
    return f"{min(seconds) * 1e3:.2f}..{max(seconds) * 1e3:.2f} ms over {len(seconds)} runs"


def throughput(
    name: str,
    moved_bytes: int,
    ours: list[float],
    reference: list[float],
    target: Target,
    note: str = "",
) -> Row:
    """Return a row in GB/s whose ratio is the share of the reference's speed.

    `ours` and `reference` are the seconds of the same rounds.
    """
    speed = moved_bytes / 1e9 / statistics.median(ours)
    return measured(
        name,
        speed,
        "GB/s",
        # The ratio is the median of the paired ratios, so the reference is derived from it.
        reference=speed / paired_ratio(ours, reference),
        target=target,
        note=f"{note}, {spread(ours)}" if note else spread(ours),
    )
