"""What a check found: the same for people and for programs.

Invariants: every problem and every notice is counted; of each the first FINDINGS_KEPT are kept.
Fields of format 1 are only ever added.
"""

from typing import Final

import msgspec

FORMAT: Final = 1
FINDINGS_KEPT: Final = 10_000

PROBLEMS: Final = {
    "manifest": "the manifest of a key space is missing or damaged; its segments are not verified",
    "segment": "a header, a length or a name inside a segment is wrong",
    "checksum": "blocks of a segment are damaged",
    "newer": "a segment of a newer kvtier",
    "unsteady": "bad at the first look and sound at the second: what is between damages data",
    "algorithm": "a segment written with a secret where the manifest says without, or vice versa",
    "misplaced": "named like a segment, but where no reader looks",
    "irregular": "a link, pipe, socket, device or folder where a file should be",
    "unreadable": "the file system refuses a file or a folder",
}
"""Kinds of findings that make a store unsound."""
NOTICES: Final = {
    "temporary": "a file that somebody died writing, an hour ago or more",
    "unknown": "not kvtier's; never touched",
    "foreign": "a tree of another system, which carries no checksums",
}
"""Kinds that a person may want to know of."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One file, or folder, and what is the matter with it."""

    file: str
    """Below the store's folder."""
    kind: str
    """Of PROBLEMS or NOTICES."""
    reason: str
    repaired: str | None = None
    """What was done about it."""


class CheckReport(msgspec.Struct, kw_only=True):
    """Of one check, over as many runs as it took."""

    format: int = FORMAT
    path: str
    spaces: list[str]
    complete: bool = False
    """Whether all of the store was looked at; False where the check was interrupted."""
    clean: bool = True
    """No problem so far."""
    resumed_after: str | None = None
    """Where an earlier run had stopped."""
    started_s: float
    """When the first run began, Unix seconds of this host."""
    segments: int = 0
    """Verified, sound or not."""
    blocks: int = 0
    """In sound segments."""
    bytes: int = 0
    """In sound segments."""
    unverified: int = 0
    """Segments of key spaces without a manifest."""
    vanished: int = 0
    """Segments removed by others while they were looked at: that is their business."""
    quarantined: int = 0
    """Files in quarantine, from earlier."""
    problems_found: int = 0
    problems: list[Finding] = []
    notices_found: int = 0
    notices: list[Finding] = []

    def add(self, finding: Finding) -> None:
        """Count it, and keep it while there is room."""
        if finding.kind in PROBLEMS:
            self.clean = False
            self.problems_found += 1
            kept = self.problems
        else:
            self.notices_found += 1
            kept = self.notices
        if len(kept) < FINDINGS_KEPT:
            kept.append(finding)
