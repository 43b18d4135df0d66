"""What a file in a store is, by its name alone.

Invariant: what is not known is UNKNOWN and left alone; no name is taken for two things.
"""

import re
from collections.abc import Iterable
from enum import Enum
from typing import Final

from kvtier.tiers.files import MANIFEST_NAME
from kvtier.tiers.shared.format import parse_segment_name
from kvtier.tiers.shared.store import is_temporary

CURSOR_NAME: Final = ".kvtier-fsck.json"
"""Where a check of a folder keeps how far it got. No store shows it: it starts with a dot."""
STORE_CURSOR_NAME: Final = "leases/fsck.json"
"""The same in a bucket, beside what evictors note: no reader or writer looks there."""

_LEASES = "leases"
_IN_SPACE = frozenset({"blocks", "access", "quarantine"})
_FAN_OUT = re.compile(r"[0-9a-f]{3}")
_MISPLACED = re.compile(r"blocks/(?:[^/]+/)?(?:[0-9a-f]{2})+\.kvt")
_JOURNAL = re.compile(r"access/[^/]+-\d{8,}\.log")
_SUMMARY = re.compile(r"access/summary-[0-9a-f]\.\d{10}\.bin")
_QUARANTINED = re.compile(r"quarantine/[^/]+\.kvt")


class Place(Enum):
    """What its name makes of a file."""

    MANIFEST = "manifest"
    SEGMENT = "segment"
    MISPLACED = "misplaced"
    """Named like a segment, but where no reader looks for it."""
    JOURNAL = "journal"
    SUMMARY = "summary"
    """Of journals that an evictor has folded."""
    QUARANTINED = "quarantined"
    LEASE = "lease"
    TEMPORARY = "temporary"
    CURSOR = "cursor"
    UNKNOWN = "unknown"


class Places:
    """The map of one store with the key spaces of these names."""

    def __init__(self, spaces: Iterable[str]) -> None:
        self._spaces = {name: number for number, name in enumerate(sorted(spaces))}

    def of(self, name: str) -> Place:
        """What the file is. Costs a regular expression or two."""
        top, _, below = name.partition("/")
        if is_temporary(name.rpartition("/")[2]):
            return Place.TEMPORARY
        if name in (CURSOR_NAME, STORE_CURSOR_NAME):
            return Place.CURSOR
        if top == _LEASES and below:
            return Place.LEASE
        return _in_space(below) if top in self._spaces else Place.UNKNOWN

    def looks_into(self, folder: str) -> bool:
        """Whether files of a store are in it."""
        top, *below = folder.split("/")
        if top == _LEASES:
            return True
        if top not in self._spaces:
            return False
        if len(below) < 2:
            return not below or below[0] in _IN_SPACE
        return len(below) == 2 and below[0] == "blocks" and bool(_FAN_OUT.fullmatch(below[1]))

    def share_done(self, name: str) -> float:
        """How much of the store is behind someone who walked to `name`: 0 to 1, an estimate.

        Keys are hashes, so those of a key space are spread evenly over its folders.
        """
        top, *below = name.split("/")
        if not self._spaces:
            return 1.0
        if top not in self._spaces:
            return sum(space < top for space in self._spaces) / len(self._spaces)
        part = 0.0
        if len(below) > 1 and below[0] == "blocks" and _FAN_OUT.fullmatch(below[1]):
            part = int(below[1], 16) / 0x1000
        elif below and below[0] > "blocks":
            part = 1.0
        return (self._spaces[top] + part) / len(self._spaces)


def _in_space(below: str) -> Place:
    if below == MANIFEST_NAME:
        return Place.MANIFEST
    if parse_segment_name(below) is not None:
        return Place.SEGMENT
    for pattern, place in (
        (_JOURNAL, Place.JOURNAL),
        (_SUMMARY, Place.SUMMARY),
        (_QUARANTINED, Place.QUARANTINED),
        (_MISPLACED, Place.MISPLACED),
    ):
        if pattern.fullmatch(below):
            return place
    return Place.UNKNOWN
