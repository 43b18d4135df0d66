"""The table in which prefix-cache offloading is commonly reported.

The columns are mean and P90 TTFT, mean and P90 end-to-end latency and overall throughput, each
with its change against the first row in brackets, and then where the prompt's tokens came from.
"""

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.table import Table

from kvtier_bench.runs import RunSummary

_SECONDS = ("mean_ttft_s", "p90_ttft_s", "mean_e2e_s", "p90_e2e_s")
HEADINGS = (
    "Mean TTFT (s)",
    "P90 TTFT (s)",
    "Mean E2E latency (s)",
    "P90 E2E latency (s)",
    "Overall tokens/s",
    "Hit rate by tier",
)


def summary_table(title: str, rows: Sequence[tuple[str, RunSummary]]) -> Table:
    """Return a table of the rows, each compared with the first."""
    table = Table(
        title=title, title_justify="left", box=SIMPLE, show_lines=True, padding=(0, 1, 0, 0)
    )
    table.add_column("", min_width=12)
    for heading in HEADINGS:
        table.add_column(heading)
    for name, summary in rows:
        table.add_row(name, *summary_cells(summary, None if name == rows[0][0] else rows[0][1]))
    return table


def summary_cells(summary: RunSummary, baseline: RunSummary | None) -> list[str]:
    """Return the cells of one row in the order of HEADINGS."""
    cells = []
    for field, digits in [*((name, 2) for name in _SECONDS), ("tokens_per_s", 0)]:
        value: float = getattr(summary, field)
        text = f"{value:.{digits}f}"
        if baseline is not None:
            text += f"\n({change(value, getattr(baseline, field))})"
        cells.append(text)
    return [*cells, hit_rate_text(summary.hit_rates)]


def change(value: float, baseline: float) -> str:
    """Return the signed change in percent; `n/a` where the baseline is 0."""
    return f"{value / baseline - 1:+.1%}" if baseline else "n/a"


def hit_rate_text(hit_rates: dict[str, float]) -> str:
    """Return a line such as `device 43%` for the device and each tier that served anything."""
    shown = [
        f"{tier} {share:.0%}"
        for tier, share in hit_rates.items()
        if tier == "device" or share >= 0.005
    ]
    return "\n".join(shown)
