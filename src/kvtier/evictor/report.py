"""The report of one pass, as JSON, text and tables, and its progress on a terminal."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

import msgspec
from rich.console import Console, Group, RenderableType
from rich.status import Status
from rich.table import Table
from rich.text import Text

from kvtier.settings.sizes import approximate_size

NAMES_MAX: Final = 1000
"""Names of unknown and orphaned files kept for a report; all are counted."""
REASONS: Final = ("bound", "quota", "ttl", "orphan", "broken", "unknown")
_NAMES_SHOWN = 10
_EVERY = 50
"""Removals between two updates."""


class Freed(msgspec.Struct):
    """Files removed, or that would be."""

    files: int = 0
    size_bytes: int = 0

    def add(self, size_bytes: int) -> None:
        """One more."""
        self.files += 1
        self.size_bytes += size_bytes


class TreeReport(msgspec.Struct):
    """One key space, or one tree of another system."""

    name: str
    layout: str
    files: int = 0
    size_bytes: int = 0
    freed: Freed = msgspec.field(default_factory=Freed)
    short_bytes: int = 0
    """Of its quota: had to go and is still there."""


class PassReport(msgspec.Struct):
    """One pass of one evictor. Bytes are physical."""

    dry_run: bool = False
    used_bytes: int = 0
    """Held against the byte bound before the pass: by the store, or by the file system."""
    used_inodes: int = 0
    left_bytes: int = 0
    left_inodes: int = 0
    shards_owned: int = 0
    shards_of_others: int = 0
    fenced: int = 0
    scanned_files: int = 0
    freed: dict[str, Freed] = msgspec.field(
        default_factory=lambda: {reason: Freed() for reason in REASONS}
    )
    """By reason."""
    trees: dict[str, TreeReport] = {}
    refused_trees: dict[str, str] = {}
    """Not touched, and why: of a newer format."""
    short_bytes: int = 0
    """Had to go and is still there: it was used a moment ago, or could not be removed."""
    short_inodes: int = 0
    unknown_files: int = 0
    unknown_bytes: int = 0
    unknown: list[str] = []
    broken_files: int = 0
    broken: list[str] = []
    folders_removed: int = 0
    refused_calls: int = 0
    """Of the store: EIO, EACCES and their like; what they were about is tried again next time."""
    seconds: float = 0.0

    @property
    def freed_bytes(self) -> int:
        """For all reasons."""
        return sum(freed.size_bytes for freed in self.freed.values())

    @property
    def freed_files(self) -> int:
        """For all reasons."""
        return sum(freed.files for freed in self.freed.values())

    def tree(self, name: str, *, is_foreign: bool) -> TreeReport:
        """The row of a tree, made where it is not there."""
        layout = "vLLM fs" if is_foreign else "kvtier"
        return self.trees.setdefault(name, TreeReport(name, layout))

    def note_unknown(self, name: str, size_bytes: int) -> None:
        """A file of no layout."""
        self.unknown_files += 1
        self.unknown_bytes += size_bytes
        if len(self.unknown) < NAMES_MAX:
            self.unknown.append(name)

    def note_broken(self, name: str, reason: str) -> None:
        """A segment whose header fails."""
        self.broken_files += 1
        if len(self.broken) < NAMES_MAX:
            self.broken.append(f"{name}: {reason}")

    def to_json(self) -> bytes:
        """One line, with everything."""
        totals = {"freed_files": self.freed_files, "freed_bytes": self.freed_bytes}
        return msgspec.json.encode({**msgspec.structs.asdict(self), **totals})


class PassObserver(Protocol):
    """Told how far a pass is; called often, must be quick."""

    def scanned(self, shard: str, files: int) -> None:
        """So many more files were seen."""
        ...

    def removed(self, reason: str, size_bytes: int) -> None:
        """A file is gone, or would be."""
        ...


class SilentObserver:
    """Nobody looks."""

    def scanned(self, shard: str, files: int) -> None:
        """See Observer."""

    def removed(self, reason: str, size_bytes: int) -> None:
        """See Observer."""


def summary_line(report: PassReport) -> str:
    """What a log keeps of a pass."""
    verb = "would free" if report.dry_run else "freed"
    parts = [
        f"used {approximate_size(report.used_bytes)} in {report.used_inodes} files and folders",
        f"{verb} {approximate_size(report.freed_bytes)} in {report.freed_files} files",
        f"{report.shards_owned} shards here, {report.shards_of_others} elsewhere",
        f"{report.seconds:.1f} s",
    ]
    if report.short_bytes:
        parts.append(f"{approximate_size(report.short_bytes)} too much are in use or refused")
    for tree in report.trees.values():
        if tree.short_bytes:
            size = approximate_size(tree.short_bytes)
            parts.append(f"{size} beyond the quota of {tree.name} are in use or refused")
    if report.unknown_files:
        parts.append(f"{report.unknown_files} unknown files")
    if report.refused_calls:
        parts.append(f"{report.refused_calls} calls refused")
    return "; ".join(parts)


def pass_view(report: PassReport) -> RenderableType:
    """Everything a person asks: by tree, by reason, and what is odd."""
    verb = "would go" if report.dry_run else "gone"
    trees = Table(title="What is there", title_justify="left")
    for heading in ("folder", "layout"):
        trees.add_column(heading, overflow="fold")
    for heading in ("files", "physical", f"files {verb}", f"bytes {verb}"):
        trees.add_column(heading, justify="right")
    for tree in report.trees.values():
        freed = tree.freed
        trees.add_row(
            Text(tree.name),
            tree.layout,
            str(tree.files),
            approximate_size(tree.size_bytes),
            str(freed.files),
            approximate_size(freed.size_bytes),
        )
    title = "What would go" if report.dry_run else "What went"
    reasons = Table(title=title, title_justify="left")
    reasons.add_column("reason")
    for heading in ("files", "physical"):
        reasons.add_column(heading, justify="right")
    for reason, freed in report.freed.items():
        reasons.add_row(reason, str(freed.files), approximate_size(freed.size_bytes))
    lines = [Text(summary_line(report))]
    lines += [Text(f"not touched: {reason}") for reason in report.refused_trees.values()]
    lines += _named("unknown", report.unknown, report.unknown_files)
    lines += _named("broken", report.broken, report.broken_files)
    return Group(trees, reasons, *lines)


def _named(what: str, names: list[str], count: int) -> list[Text]:
    lines = [Text(f"{what}: {ascii(name)[1:-1]}") for name in names[:_NAMES_SHOWN]]
    if count > len(lines):
        lines.append(Text(f"{what}: {count - len(lines)} more; --json names them"))
    return lines


class ProgressLine:
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
def progress_on(console: Console) -> Iterator[PassObserver]:
    """An observer that shows on a terminal, and is silent elsewhere."""
    if not console.is_terminal:
        yield SilentObserver()
        return
    with console.status("starting") as status:
        yield ProgressLine(status)
