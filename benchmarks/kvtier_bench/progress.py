"""Progress that a person can follow, on a terminal and in a log.

`Steps` are numbered steps, each with the time it took; the running one shows a spinner and its
latest news. `PhaseScreen` shows all phases of a run of known length at once, with the time that
has passed and the time that is left. In a log, where nothing can be redrawn, both print plain
lines, and news only now and then.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.status import Status
from rich.table import Table
from rich.text import Text

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
        """Show the latest news of the running step in place of the news before."""
        if self._status is not None and self.console.is_terminal:
            self._status.update(self._markup(f" [dim]{news}[/dim]"))
        elif self._clock.now_s() - self._told_s >= NEWS_EVERY_S:
            self._told_s = self._clock.now_s()
            self.console.print(f"      {news}", markup=False)

    def _markup(self, rest: str) -> str:
        # The step number's brackets are text, not console markup.
        return self._title.replace("[", r"\[", 1) + rest


class PhaseScreen:
    """A screen of phases: what each shows, its result, the elapsed and the remaining time.

    A context manager that draws while it is open. One thread runs the phases; `tell` may be
    called from any.
    """

    def __init__(
        self, console: Console, phases: Sequence[str], expected_s: float, clock: Clock | None = None
    ) -> None:
        self._console = console
        self._phases = phases
        self._clock = clock or MonotonicClock()
        self._began_s = self._clock.now_s()
        self._ends_s = self._began_s + expected_s
        self._marks = "✓▶·" if (console.encoding or "").startswith("utf") else "+>."
        self._results: list[str] = []
        self._took_s: list[float | None] = []
        self._running = False
        self._started_s = self._told_s = self._began_s
        self._news = ""
        self._live: Live | None = None

    def expect(self, seconds: float) -> None:
        """Expect the last phase to end in `seconds` from now."""
        self._ends_s = self._clock.now_s() + seconds

    @contextmanager
    def phase(self) -> Iterator[None]:
        """Show the next phase as running while the body runs."""
        self._begin()
        self._running = True
        self._line(f"{self._number}/{len(self._phases)} {self._title}, {self._left_text()}")
        yield
        took_s = self._clock.now_s() - self._started_s
        self._took_s[-1] = took_s
        self._running = False
        self._line(f"{self._number}/{len(self._phases)} took {took_s:.0f} s")

    def leave_out(self) -> None:
        """Show the next phase as skipped."""
        self._begin()
        self.result("left out: no time")

    def result(self, text: str) -> None:
        """Show `text` as the result of the current phase."""
        self._results[-1] = text
        self._line(f"    {text}")

    def tell(self, news: str) -> None:
        """Show what is happening now, in place of the news before."""
        self._news = news
        if self._clock.now_s() - self._told_s >= NEWS_EVERY_S:
            self._line(f"    {news}, {self._left_text()}")

    def say(self, text: str) -> None:
        """Print `text` permanently, above the phases."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(
                console=self._console, get_renderable=self._render, refresh_per_second=4
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._news = "" if kind is None else "stopped"
            self._live.stop()

    @property
    def _number(self) -> int:
        return len(self._results)

    @property
    def _title(self) -> str:
        return self._phases[self._number - 1]

    def _begin(self) -> None:
        self._results.append("")
        self._took_s.append(None)
        self._started_s = self._told_s = self._clock.now_s()
        self._news = ""

    def _line(self, text: str) -> None:
        """Print a line with the time passed, unless the screen is drawn."""
        if self._live is None:
            self._told_s = self._clock.now_s()
            passed = _minutes(self._told_s - self._began_s)
            self._console.print(f"[{passed}] {text}", markup=False, highlight=False, soft_wrap=True)

    def _left_text(self) -> str:
        left_s = self._ends_s - self._clock.now_s()
        return f"about {_minutes(left_s)} left" if left_s > 0 else "almost done"

    def _render(self) -> RenderableType:
        table = Table.grid(padding=(0, 2, 0, 0))
        for number, title in enumerate(self._phases):
            style, mark, seconds = "dim", self._marks[2], ""
            if number < self._number:
                took_s = self._took_s[number]
                running = took_s is None and self._running
                style, mark = ("bold", self._marks[1]) if running else ("", self._marks[0])
                if running:
                    took_s = self._clock.now_s() - self._started_s
                seconds = "" if took_s is None else f"{took_s:.0f} s"
            result = self._results[number] if number < self._number else ""
            table.add_row(Text(f"{mark} {title}", style), Text(result, "green"), Text(seconds))
        passed = _minutes(self._clock.now_s() - self._began_s)
        left = f", {self._left_text()}" if self._running else ""
        table.add_row(Text(f"{passed} passed{left}", "cyan"))
        if self._news:
            table.add_row(Text(self._news, "dim"))
        return table


def _minutes(seconds: float) -> str:
    whole = max(0, round(seconds))
    return f"{whole // 60}:{whole % 60:02}"
