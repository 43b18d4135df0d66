"""What a shared store holds, in numbers: the same for people and for programs.

Invariant: fields of format 1 are only ever added.
"""

from array import array
from typing import Any, Final

import msgspec
import numpy as np

from kvtier.blocks.key import KeySpace
from kvtier.inspection.view import Capacity, Entry


class FileTotals(msgspec.Struct, frozen=True, kw_only=True):
    """Of all files of one kind. Times are Unix seconds of the store's clock; None of no files."""

    files: int
    nominal_bytes: int
    """The lengths of the files."""
    physical_bytes: int
    """What they take on the disk, as `du` says; in a bucket their lengths."""
    oldest_s: float | None
    median_s: float | None
    newest_s: float | None


class FileTally:
    """Takes in one file after the other: 8 bytes of memory each."""

    def __init__(self) -> None:
        self._nominal_bytes = 0
        self._physical_bytes = 0
        self._modified_s = array("d")

    def add(self, entry: Entry) -> None:
        """One more."""
        self._nominal_bytes += entry.stat.size
        self._physical_bytes += entry.physical_bytes
        self._modified_s.append(entry.stat.modified_s)

    def bulk(self) -> FileTotals:
        """All so far."""
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
    """Hex of the first block's key, which names the first segment."""
    parent: str | None
    """Hex of the block before it; None where the prefix begins here, empty where unknown."""
    reads: int
    """Of the first segment."""
    last_read_s: float
    """On the store's clock."""
    segments: int
    blocks: int
    tokens: int | None
    """None where the key names a KV-cache group that the key space does not have."""


class ForeignTree(msgspec.Struct, frozen=True, kw_only=True):
    """One configuration of an engine, with the folders of all its ranks."""

    name: str
    system: str
    """`vLLM fs`, `llm-d FS`, or `vLLM fs or llm-d FS` where the configuration does not tell."""
    config: dict[str, Any] | None
    """All fields of config.json."""
    mistake: str | None
    """What is wrong with config.json."""
    ranks: list[int]
    groups: list[int]
    files: FileTotals
    others: int
    """Files that are no blocks: those being written, or left by the dead."""


FORMAT: Final = 1


class QuarantinedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that failed verification."""

    file: str
    bytes: int
    modified_s: float
    reason: str
    """What is wrong with it now."""


class SpaceSurvey(msgspec.Struct, frozen=True, kw_only=True):
    """One key space."""

    name: str
    keyed: bool
    """Whether a secret is needed to verify its blocks."""
    mistake: str | None
    """Why its manifest is of no use."""
    space: KeySpace | None
    """Every field of the identity; None where the manifest is of no use."""
    segments: FileTotals
    blocks: int | None
    """In segments of a possible length; None without a manifest."""
    odd_lengths: int
    """Segments of a length that no number of blocks has: `kvtier fsck` tells more."""
    journals: int
    summaries: int
    """Files that evictors have folded journals into."""
    quarantined: list[QuarantinedFile]
    hottest: list[Chain]


class SpaceDifferences(msgspec.Struct, frozen=True, kw_only=True):
    """Why key spaces of one model are not one."""

    model: str
    spaces: list[str]
    fields: dict[str, dict[str, Any]]
    """Field -> key space -> its value, for the fields that are not the same in all."""


class OtherFile(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is not kvtier's, or that the file system refused to show."""

    name: str
    what: str


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """What a shared folder or bucket holds."""

    format: int = FORMAT
    path: str
    now_s: float
    """When, on this host's clock. All other times are the store's."""
    file_system: Capacity | None
    """None of a bucket, where physical bytes are the lengths of the files."""
    spaces: list[SpaceSurvey]
    differing: list[SpaceDifferences]
    foreign: list[ForeignTree]
    temporaries: FileTotals
    leases: int
    unknown_found: int
    unknown: list[OtherFile]
    """The first of them; folders are not looked into."""
    unreadable_found: int
    unreadable: list[OtherFile]
    """The first of them: a file or a folder, and what was answered."""
