"""Timing contenders against each other, interleaved, by the median.

A machine that slows down slows all of them, and one interruption decides nothing.
"""

import statistics
from collections.abc import Callable, Mapping

from kvtier.clock import perf_s
from kvtier_bench.rows import Row, Target, measured


def interleave(
    contenders: Mapping[str, Callable[[], None]], rounds: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of each call: `rounds` per contender, in turns, after `warm_up` uncounted turns."""
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
    """Median over the rounds of reference time / our time: our share of its speed."""
    return statistics.median(ref / own for own, ref in zip(ours, reference, strict=True))


def spread(seconds: list[float]) -> str:
    """`min..max` in milliseconds, for a row's note."""
    return f"{min(seconds) * 1e3:.2f}..{max(seconds) * 1e3:.2f} ms over {len(seconds)} runs"


def throughput(
    name: str,
    moved_bytes: int,
    ours: list[float],
    reference: list[float],
    target: Target,
    note: str = "",
) -> Row:
    """A row in GB/s, judged by the share of the reference's speed; seconds of equal rounds."""
    speed = moved_bytes / 1e9 / statistics.median(ours)
    return measured(
        name,
        speed,
        "GB/s",
        # The ratio is the median of the pairs, so the reference follows from it.
        reference=speed / paired_ratio(ours, reference),
        target=target,
        note=f"{note}, {spread(ours)}" if note else spread(ours),
    )
