"""How far a long command is: a bar on a terminal, a line now and then in a log. On stderr."""

from types import TracebackType
from typing import Final, Self

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from kvtier.clock import Clock, MonotonicClock

NEWS_EVERY_S: Final = 60.0
"""Where there is no terminal for a bar."""


class Bar:
    """Use it in a `with`. For one thread."""

    def __init__(self, doing: str, clock: Clock | None = None) -> None:
        """`doing`: what the command does, as `verifying`."""
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
        """Show it."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take it away."""
        self._progress.stop()

    def show(self, share: float, news: str) -> None:
        """`share` of the work is done, 0 to 1."""
        self._progress.update(self._task, completed=share, news=news)
        if self._progress.disable and self._clock.now_s() - self._told_s >= NEWS_EVERY_S:
            self._told_s = self._clock.now_s()
            click.echo(f"{share:.0%}: {news}", err=True)

    def print(self, line: str) -> None:
        """A line of the command's own: to stdout, or above the bar."""
        if self._progress.disable:
            click.echo(line)
        else:
            self._progress.console.print(Text(line), soft_wrap=True)
