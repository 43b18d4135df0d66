"""What a shared store holds, in numbers: the same for people and for programs.

Invariant: fields of format 1 are only ever added.
"""

from typing import Any, Final

import msgspec

from kvtier.blocks.key import KeySpace
from kvtier.inspection.foreign import ForeignTree
from kvtier.inspection.hottest import Chain
from kvtier.inspection.pile import Bulk
from kvtier.inspection.view import FileSystem

FORMAT: Final = 1


class Quarantined(msgspec.Struct, frozen=True, kw_only=True):
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
    segments: Bulk
    blocks: int | None
    """In segments of a possible length; None without a manifest."""
    odd_lengths: int
    """Segments of a length that no number of blocks has: `kvtier fsck` tells more."""
    journals: int
    summaries: int
    """Files that evictors have folded journals into."""
    quarantined: list[Quarantined]
    hottest: list[Chain]


class Differing(msgspec.Struct, frozen=True, kw_only=True):
    """Why key spaces of one model are not one."""

    model: str
    spaces: list[str]
    fields: dict[str, dict[str, Any]]
    """Field -> key space -> its value, for the fields that are not the same in all."""


class Stranger(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is not kvtier's, or that the file system refused to show."""

    name: str
    what: str


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """What a shared folder or bucket holds."""

    format: int = FORMAT
    path: str
    now_s: float
    """When, on this host's clock. All other times are the store's."""
    file_system: FileSystem | None
    """None of a bucket, where physical bytes are the lengths of the files."""
    spaces: list[SpaceSurvey]
    differing: list[Differing]
    foreign: list[ForeignTree]
    temporaries: Bulk
    leases: int
    unknown_found: int
    unknown: list[Stranger]
    """The first of them; folders are not looked into."""
    unreadable_found: int
    unreadable: list[Stranger]
    """The first of them: a file or a folder, and what was answered."""
