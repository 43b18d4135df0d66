"""The report of a check: its counts and findings.

`kvtier fsck --json` prints it. Invariants: every problem and every notice is counted, and the first
FINDINGS_KEPT of each are kept. Fields of format 1 are only ever added.
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
    "unsteady": "damaged at the first read and intact at the second: hardware on the way is faulty",
    "algorithm": "a segment written with a secret although the manifest has none, or vice versa",
    "misplaced": "named like a segment, but in a folder where no engine looks",
    "irregular": "a link, pipe, socket, device or folder where a file should be",
    "unreadable": "a file or folder that cannot be read",
}
"""Kinds of findings that are problems of the store."""
NOTICES: Final = {
    "temporary": "a temporary file of a writer that crashed an hour ago or earlier",
    "unknown": "not kvtier's; never touched",
    "foreign": "a tree of another system, which carries no checksums",
}
"""Kinds of findings that are worth knowing, but no problems."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A problem or notice about one file or folder."""

    file: str
    """Name relative to the store's root."""
    kind: str
    """A key of PROBLEMS or NOTICES."""
    reason: str
    repaired: str | None = None
    """What the repair did."""


class CheckReport(msgspec.Struct, kw_only=True):
    """The report of one check, which may take several runs."""

    format: int = FORMAT
    path: str
    spaces: list[str]
    complete: bool = False
    """Whether the whole store was checked; False if the check was interrupted."""
    clean: bool = True
    """Whether no problem was found so far."""
    resumed_after: str | None = None
    """Position after which this run resumed an earlier one."""
    started_s: float
    """Start of the first run, in Unix seconds by this host's clock."""
    segments: int = 0
    """Segments verified, intact or not."""
    blocks: int = 0
    """Blocks in intact segments."""
    bytes: int = 0
    """Bytes of intact segments."""
    unverified: int = 0
    """Segments of key spaces without a manifest."""
    vanished: int = 0
    """Segments that engines or evictors removed or replaced during the check."""
    quarantined: int = 0
    """Files that were in quarantine already."""
    problems_found: int = 0
    problems: list[Finding] = []
    notices_found: int = 0
    notices: list[Finding] = []

    def add(self, finding: Finding) -> None:
        """Count a finding, and keep it unless there are FINDINGS_KEPT already."""
        if finding.kind in PROBLEMS:
            self.clean = False
            self.problems_found += 1
            kept = self.problems
        else:
            self.notices_found += 1
            kept = self.notices
        if len(kept) < FINDINGS_KEPT:
            kept.append(finding)
