"""The progress of a long command, on stderr: a bar on a terminal, lines in a log."""

from types import TracebackType
from typing import Final, Self

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from kvtier.clock import Clock, MonotonicClock

NEWS_EVERY_S: Final = 60.0
"""Time between two lines where there is no terminal."""


class Bar:
    """A progress bar, used as a context manager. One thread at a time updates it."""

    def __init__(self, doing: str, clock: Clock | None = None) -> None:
        """`doing` is the label, for example `verifying`."""
        self._clock = clock or MonotonicClock()
        self._told_s = self._clock.now_s()
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn(doing),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%  {task.fields[news]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=1.0, news="")

    def __enter__(self) -> Self:
        """Show the bar."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the bar."""
        self._progress.stop()

    def show(self, share: float, news: str) -> None:
        """Show that `share` of the work is done (0 to 1), and `news` beside the bar."""
        self._progress.update(self._task, completed=share, news=news)
        if self._progress.disable and self._clock.now_s() - self._told_s >= NEWS_EVERY_S:
            self._told_s = self._clock.now_s()
            click.echo(f"{share:.0%}: {news}", err=True)

    def print(self, line: str) -> None:
        """Print a line of the command's output: to stdout, or above the bar on a terminal."""
        if self._progress.disable:
            click.echo(line)
        else:
            self._progress.console.print(Text(line), soft_wrap=True)
