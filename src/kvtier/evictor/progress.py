"""How far a pass is, on a terminal: a line that moves. In a log nothing: passes are told there."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status

from kvtier.evictor.work import Observer, Silent
from kvtier.settings.sizes import approximate_size

_EVERY = 50
"""Removals between two updates."""


class Line:
    """An `Observer` that counts on one line."""

    def __init__(self, status: Status) -> None:
        self._status = status
        self._scanned = 0
        self._removed = 0
        self._bytes = 0

    @property
    def text(self) -> str:
        """What is shown."""
        return (
            f"{self._scanned} files seen, {self._removed} removed, "
            f"{approximate_size(self._bytes)} free"
        )

    def scanned(self, shard: str, files: int) -> None:
        """See Observer."""
        self._scanned += files
        self._status.update(f"shard {shard}: {self.text}")

    def removed(self, reason: str, size_bytes: int) -> None:
        """See Observer."""
        self._removed += 1
        self._bytes += size_bytes
        if self._removed % _EVERY == 0:
            self._status.update(f"{reason}: {self.text}")


@contextmanager
def progress_on(console: Console) -> Iterator[Observer]:
    """An observer that shows on a terminal, and is silent elsewhere."""
    if not console.is_terminal:
        yield Silent()
        return
    with console.status("starting") as status:
        yield Line(status)
