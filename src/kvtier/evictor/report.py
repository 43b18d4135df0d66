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
"""Names of unknown and of broken files in a report, at most; all are counted."""
REASONS: Final = ("bound", "quota", "ttl", "orphan", "broken", "unknown")
_NAMES_SHOWN = 10
_EVERY = 50
"""Removals between two updates of the progress line."""


class Freed(msgspec.Struct):
    """Number and size of the files that were removed, or would be in a dry run."""

    files: int = 0
    size_bytes: int = 0

    def add(self, size_bytes: int) -> None:
        """Count one file."""
        self.files += 1
        self.size_bytes += size_bytes


class TreeReport(msgspec.Struct):
    """The part of a report about one key space, or one tree of another system."""

    name: str
    layout: str
    files: int = 0
    size_bytes: int = 0
    freed: Freed = msgspec.field(default_factory=Freed)
    short_bytes: int = 0
    """Bytes beyond its quota that could not be freed."""


class PassReport(msgspec.Struct):
    """The results of one pass of one evictor. Bytes are physical."""

    dry_run: bool = False
    used_bytes: int = 0
    """Bytes compared with the bound before the pass: of the store, or of the file system."""
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
    """Removed files by reason."""
    trees: dict[str, TreeReport] = {}
    refused_trees: dict[str, str] = {}
    """Trees that are not touched, with the reason, such as a newer format."""
    short_bytes: int = 0
    """Bytes that could not be freed: they were used recently, or the store refused."""
    short_inodes: int = 0
    unknown_files: int = 0
    unknown_bytes: int = 0
    unknown: list[str] = []
    broken_files: int = 0
    broken: list[str] = []
    folders_removed: int = 0
    refused_calls: int = 0
    """Calls to the store that failed, as with EIO or EACCES; the next pass tries again."""
    seconds: float = 0.0

    @property
    def freed_bytes(self) -> int:
        """Bytes removed for any reason."""
        return sum(freed.size_bytes for freed in self.freed.values())

    @property
    def freed_files(self) -> int:
        """Files removed for any reason."""
        return sum(freed.files for freed in self.freed.values())

    def tree(self, name: str, *, is_foreign: bool) -> TreeReport:
        """Return the part about a tree, and create it first if it is missing."""
        layout = "vLLM fs" if is_foreign else "kvtier"
        return self.trees.setdefault(name, TreeReport(name, layout))

    def note_unknown(self, name: str, size_bytes: int) -> None:
        """Count a file of no known layout."""
        self.unknown_files += 1
        self.unknown_bytes += size_bytes
        if len(self.unknown) < NAMES_MAX:
            self.unknown.append(name)

    def note_broken(self, name: str, reason: str) -> None:
        """Count a segment whose header is invalid."""
        self.broken_files += 1
        if len(self.broken) < NAMES_MAX:
            self.broken.append(f"{name}: {reason}")

    def to_json(self) -> bytes:
        """Return the whole report as one line of JSON."""
        totals = {"freed_files": self.freed_files, "freed_bytes": self.freed_bytes}
        return msgspec.json.encode({**msgspec.structs.asdict(self), **totals})


class PassObserver(Protocol):
    """Receives the progress of a pass. It is called often and must be fast."""

    def scanned(self, shard: str, files: int) -> None:
        """Take note that `files` more files of `shard` were scanned."""
        ...

    def removed(self, reason: str, size_bytes: int) -> None:
        """Take note that a file was removed, or would be in a dry run."""
        ...


class SilentObserver:
    """An observer that shows nothing."""

    def scanned(self, shard: str, files: int) -> None:
        """Do nothing."""

    def removed(self, reason: str, size_bytes: int) -> None:
        """Do nothing."""


def summary_line(report: PassReport) -> str:
    """Return a pass as one line for a log."""
    verb = "would free" if report.dry_run else "freed"
    parts = [
        f"used {approximate_size(report.used_bytes)} in {report.used_inodes} files and folders",
        f"{verb} {approximate_size(report.freed_bytes)} in {report.freed_files} files",
        f"{report.shards_owned} shards here, {report.shards_of_others} elsewhere",
        f"{report.seconds:.1f} s",
    ]
    if report.short_bytes:
        parts.append(f"{approximate_size(report.short_bytes)} too much, in use or refused")
    for tree in report.trees.values():
        if tree.short_bytes:
            size = approximate_size(tree.short_bytes)
            parts.append(f"{size} beyond the quota of {tree.name}, in use or refused")
    if report.unknown_files:
        parts.append(f"{report.unknown_files} unknown files")
    if report.refused_calls:
        parts.append(f"{report.refused_calls} calls refused")
    return "; ".join(parts)


def pass_view(report: PassReport) -> RenderableType:
    """Return a pass as tables by tree and by reason, with unknown, broken and refused names."""
    deleted, freed_heading = ("to delete", "to free") if report.dry_run else ("deleted", "freed")
    trees = Table(title="Contents", title_justify="left")
    for heading in ("folder", "layout"):
        trees.add_column(heading, overflow="fold")
    for heading in ("files", "physical", deleted, freed_heading):
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
    reasons = Table(title=deleted.capitalize(), title_justify="left")
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
        lines.append(Text(f"{what}: {count - len(lines)} more; --json lists them"))
    return lines


class ProgressLine:
    """An observer that shows the numbers of a pass on one line of a terminal."""

    def __init__(self, status: Status) -> None:
        self._status = status
        self._scanned = 0
        self._removed = 0
        self._bytes = 0

    @property
    def text(self) -> str:
        """The numbers that are shown."""
        return (
            f"{self._scanned} files scanned, {self._removed} removed, "
            f"{approximate_size(self._bytes)} freed"
        )

    def scanned(self, shard: str, files: int) -> None:
        """Count scanned files and update the line."""
        self._scanned += files
        self._status.update(f"shard {shard}: {self.text}")

    def removed(self, reason: str, size_bytes: int) -> None:
        """Count a removed file; update the line now and then."""
        self._removed += 1
        self._bytes += size_bytes
        if self._removed % _EVERY == 0:
            self._status.update(f"{reason}: {self.text}")


@contextmanager
def progress_on(console: Console) -> Iterator[PassObserver]:
    """Yield an observer that shows a line on a terminal, and nothing elsewhere.

    A log contains a line per pass instead.
    """
    if not console.is_terminal:
        yield SilentObserver()
        return
    with console.status("starting") as status:
        yield ProgressLine(status)
