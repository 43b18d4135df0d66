"""A picture of the table: throughput and mean TTFT per row.

matplotlib is an extra: nothing else needs it, so it is imported when a plot is asked for.
"""

from collections.abc import Sequence
from pathlib import Path

from kvtier.errors import InvalidSettings
from kvtier_bench.runs import RunSummary

HOW_TO_GET = "drawing needs matplotlib: pip install 'kvtier[plots]'"

_PANELS = (
    ("mean_ttft_s", "Mean time to first token (s), lower is better"),
    ("mean_e2e_s", "Mean end-to-end latency (s), lower is better"),
    ("tokens_per_s", "Throughput (tokens/s), higher is better"),
)


def draw_summaries(path: Path, title: str, rows: Sequence[tuple[str, RunSummary]]) -> None:
    """Write a PNG with one panel per measure. Raises InvalidSettings without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidSettings(HOW_TO_GET) from error
    names = [name for name, _ in rows]
    figure = Figure(figsize=(15, 1.6 + 0.5 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for number, (measure, heading) in enumerate(_PANELS):
        axes = figure.add_subplot(1, len(_PANELS), number + 1)
        values = [getattr(summary, measure) for _, summary in rows]
        bars = axes.barh(names, values, color=[f"C{index}" for index in range(len(rows))])
        axes.bar_label(bars, [_label(value) for value in values], padding=3)
        axes.invert_yaxis()
        axes.set_title(heading, fontsize=10)
        axes.margins(x=0.15)
        if number:
            axes.set_yticklabels([])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _label(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"
