"""What one pass saw and did, for people, `--json` and metrics."""

from typing import Final

import msgspec

NAMES_MAX: Final = 1000
"""Names of unknown and orphaned files kept for a report; all are counted."""

REASONS: Final = ("bound", "quota", "ttl", "orphan", "broken", "unknown")


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


class Report(msgspec.Struct):
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
