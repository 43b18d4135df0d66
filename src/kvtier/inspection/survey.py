"""The content of a survey: what a shared folder or bucket holds, in numbers.

`kvtier inspect --json` prints these structs. Invariant: fields of format 1 are only ever added.
"""

from array import array
from typing import Any, Final

import msgspec
import numpy as np

from kvtier.blocks.key import KeySpace
from kvtier.inspection.view import Capacity, Entry

FORMAT: Final = 1


class FileTotals(msgspec.Struct, frozen=True, kw_only=True):
    """Totals of the files of one kind. Times are Unix seconds by the store's clock.

    Without files, the times are None.
    """

    files: int
    nominal_bytes: int
    """Sum of the files' lengths."""
    physical_bytes: int
    """Allocated bytes, as `du` counts them; in a bucket the lengths."""
    oldest_s: float | None
    median_s: float | None
    newest_s: float | None


class FileTally:
    """A running count of files, from which FileTotals are made. Uses 8 bytes per file."""

    def __init__(self) -> None:
        self._nominal_bytes = 0
        self._physical_bytes = 0
        self._modified_s = array("d")

    def add(self, entry: Entry) -> None:
        """Count one more file."""
        self._nominal_bytes += entry.stat.size
        self._physical_bytes += entry.physical_bytes
        self._modified_s.append(entry.stat.modified_s)

    def totals(self) -> FileTotals:
        """Return the totals of the files counted so far."""
        times = np.asarray(self._modified_s)
        return FileTotals(
            files=len(times),
            nominal_bytes=self._nominal_bytes,
            physical_bytes=self._physical_bytes,
            oldest_s=float(times.min()) if len(times) else None,
            median_s=float(np.median(times)) if len(times) else None,
            newest_s=float(times.max()) if len(times) else None,
        )


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """Consecutive segments of one prefix."""

    first_key: str
    """First block's key in hex, which names the first segment."""
    parent: str | None
    """Key of the block before it in hex; None: the prefix begins here; empty: unknown."""
    reads: int
    """Reads of the first segment."""
    last_read_s: float
    """Unix seconds by the store's clock."""
    segments: int
    blocks: int
    tokens: int | None
    """None if the key names a KV-cache group that the key space does not have."""


class ForeignTree(msgspec.Struct, frozen=True, kw_only=True):
    """A tree of another system: one engine configuration with the folders of all its ranks."""

    name: str
    system: str
    """`vLLM fs`, `llm-d FS`, or `vLLM fs or llm-d FS` if the configuration is inconclusive."""
    config: dict[str, Any] | None
    """All fields of config.json."""
    mistake: str | None
    """What is wrong with config.json."""
    ranks: list[int]
    groups: list[int]
    files: FileTotals
    others: int
    """Other files, such as temporary ones of running or crashed writers."""


class QuarantinedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file in quarantine."""

    file: str
    bytes: int
    modified_s: float
    reason: str
    """Result of verifying it again."""


class SpaceSurvey(msgspec.Struct, frozen=True, kw_only=True):
    """The content of one key space."""

    name: str
    keyed: bool
    """Whether verifying its blocks requires a secret."""
    mistake: str | None
    """Why its manifest is unusable."""
    space: KeySpace | None
    """The identity with all fields; None if the manifest is unusable."""
    segments: FileTotals
    blocks: int | None
    """Blocks in segments of a valid length; None without a manifest."""
    odd_lengths: int
    """Segments whose length fits no number of blocks; `kvtier fsck` says more."""
    journals: int
    summaries: int
    """Files into which evictors have folded journals."""
    quarantined: list[QuarantinedFile]
    hottest: list[Chain]


class SpaceDifferences(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that keep the key spaces of one model apart."""

    model: str
    spaces: list[str]
    fields: dict[str, dict[str, Any]]
    """Field -> key space -> its value, for the fields that differ."""


class OtherFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file or folder that is not kvtier's, or that cannot be read."""

    name: str
    what: str
    """Its kind, or the error."""


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """What a shared folder or bucket holds."""

    format: int = FORMAT
    path: str
    now_s: float
    """Time of the survey by this host's clock. All other times are by the store's clock."""
    file_system: Capacity | None
    """None for a bucket, where physical bytes are the lengths of the files."""
    spaces: list[SpaceSurvey]
    differing: list[SpaceDifferences]
    foreign: list[ForeignTree]
    temporaries: FileTotals
    leases: int
    unknown_found: int
    unknown: list[OtherFile]
    """The first unknown files and folders; a folder counts as one."""
    unreadable_found: int
    unreadable: list[OtherFile]
    """The first files and folders that could not be read, with the error."""
