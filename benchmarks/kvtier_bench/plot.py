"""Pictures of measurements: bars in the terminal, and PNG files.

matplotlib is an extra that nothing else needs, so it is imported when a file is asked for.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvtier.errors import InvalidSettings
from kvtier_bench.runs import RunSummary

HOW_TO_GET = "drawing needs matplotlib: pip install 'kvtier[plots]'"
BAR_CELLS = 30

_PANELS = (
    ("mean_ttft_s", "Mean time to first token (s), lower is better"),
    ("mean_e2e_s", "Mean end-to-end latency (s), lower is better"),
    ("tokens_per_s", "Throughput (tokens/s), higher is better"),
)
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def ttft_bars(title: str, rows: Sequence[tuple[str, float]], console: Console) -> Table:
    """Return a bar for each time; all but the first say how many times faster they are."""
    table = Table(title=title, title_justify="left", box=None, show_header=False, padding=(0, 1))
    fine = (console.encoding or "").startswith("utf")
    longest_s = max(seconds for _, seconds in rows)
    for number, (name, seconds) in enumerate(rows):
        bar = Text(_bar(seconds / longest_s, fine=fine), "red" if number == 0 else "green")
        faster = f"{rows[0][1] / seconds:.0f}x faster" if number else ""
        table.add_row(name, bar, f"{seconds:.2f} s", faster)
    return table


def _bar(share: float, *, fine: bool) -> str:
    eighths = max(1, round(share * BAR_CELLS * 8))
    if not fine:
        return "#" * -(-eighths // 8)
    return (_EIGHTHS[8] * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


def draw_ttft(path: Path, title: str, rows: Sequence[tuple[str, float]]) -> None:
    """Write the bars to a PNG file. Raises InvalidSettings without matplotlib."""
    figure = _figure((9, 1.2 + 0.5 * len(rows)), title)
    colors = ["C3", *["C2"] * (len(rows) - 1)]
    _bars(figure.add_subplot(), rows, "Seconds, lower is better", colors)
    _save(figure, path)


def draw_summaries(path: Path, title: str, rows: Sequence[tuple[str, RunSummary]]) -> None:
    """Write a PNG with one panel per measure. Raises InvalidSettings without matplotlib."""
    figure = _figure((15, 1.6 + 0.5 * len(rows)), title)
    colors = [f"C{index}" for index in range(len(rows))]
    for number, (measure, heading) in enumerate(_PANELS):
        axes = figure.add_subplot(1, len(_PANELS), number + 1)
        _bars(axes, [(name, getattr(each, measure)) for name, each in rows], heading, colors)
        if number:
            axes.set_yticklabels([])
    _save(figure, path)


def _figure(size: tuple[float, float], title: str) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidSettings(HOW_TO_GET) from error
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    return figure


def _bars(
    axes: Any, rows: Sequence[tuple[str, float]], heading: str, colors: Sequence[str]
) -> None:
    bars = axes.barh([name for name, _ in rows], [value for _, value in rows], color=colors)
    axes.bar_label(bars, [_label(value) for _, value in rows], padding=3)
    axes.invert_yaxis()
    axes.set_title(heading, fontsize=10)
    axes.margins(x=0.15)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _label(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"
