"""Progress that a person can follow: numbered steps, each with what it took.

On a terminal the running step shows a spinner and its latest news; in a log, where a
spinner is invisible, the news is printed now and then instead.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status

from kvtier.clock import Clock, MonotonicClock

NEWS_EVERY_S = 15.0


class Steps:
    """Numbered steps on a console. For one thread."""

    def __init__(self, console: Console, total: int, clock: Clock | None = None) -> None:
        self.console = console
        self._total = total
        self._clock = clock or MonotonicClock()
        self._number = 0
        self._title = ""
        self._status: Status | None = None
        self._told_s = 0.0

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Show `title` while the body runs, then how long it took."""
        self._number += 1
        self._title = f"[{self._number}/{self._total}] {title}"
        started_s = self._told_s = self._clock.now_s()
        with self.console.status(self._markup("")) as self._status:
            if not self.console.is_terminal:
                self.console.print(self._markup("..."))
            yield
        self._status = None
        took_s = self._clock.now_s() - started_s
        self.console.print(f"{self._markup('')} [dim]{took_s:.0f} s[/dim]")

    def tell(self, news: str) -> None:
        """The running step's latest news; replaces the one before."""
        if self._status is not None and self.console.is_terminal:
            self._status.update(self._markup(f" [dim]{news}[/dim]"))
        elif self._clock.now_s() - self._told_s >= NEWS_EVERY_S:
            self._told_s = self._clock.now_s()
            self.console.print(f"      {news}", markup=False)

    def _markup(self, rest: str) -> str:
        # The step number's brackets are text, not console markup.
        return self._title.replace("[", r"\[", 1) + rest
