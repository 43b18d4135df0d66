"""The key spaces of a store, as their manifests tell.

Invariant: a key space whose manifest cannot be trusted has none here, but the reason why.
"""

import hmac
import os
import re
from collections.abc import Iterable, Sequence
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple

from kvtier.blocks.checksum import Checksum, HmacSha256, Xxh3, load_key
from kvtier.errors import InvalidSettings
from kvtier.inspection.view import View
from kvtier.tiers.files import MANIFEST_NAME, manifest_format
from kvtier.tiers.shared.format import parse_segment_name, space_folder
from kvtier.tiers.shared.manifest import FORMAT, SpaceManifest, manifest_of, parse_manifest
from kvtier.tiers.shared.store import is_temporary

BLOCK_BYTES_MAX: Final = 1 << 30
"""No engine has blocks of a gigabyte; who says so wants memory."""


MANIFEST_BYTES_MAX: Final = 1 << 20


_NAME = re.compile(r".+-[0-9a-f]{16}")


_PLAIN, _KEYED = Xxh3.algorithm, HmacSha256.algorithm


class FoundSpace(NamedTuple):
    """A folder of a key space. Either `manifest` or `mistake` is there."""

    name: str
    manifest: SpaceManifest | None
    mistake: str | None
    """Why the manifest is of no use."""

    @property
    def is_keyed(self) -> bool:
        """Whether a secret is needed to verify it."""
        return self.manifest is not None and self.manifest.algorithm == _KEYED


class Secrets:
    """The secrets that a person gave, to be tried on key spaces."""

    def __init__(self, key_files: Sequence[Path] = ()) -> None:
        """Raises InvalidSettings as `load_key` does."""
        self._keyed = [HmacSha256(load_key(path, "--key-file")) for path in key_files]

    @property
    def strongest(self) -> Checksum:
        """What to seal with that nobody else should forge."""
        return self._keyed[0] if self._keyed else Xxh3()

    def fitting(self, manifest: SpaceManifest) -> Checksum | None:
        """How the segments of a key space are verified; None where its secret is not here."""
        known = self._keyed if manifest.algorithm == _KEYED else [Xxh3()]
        for checksum in known:
            wanted = manifest_of(manifest.space, checksum).witness
            if hmac.compare_digest(wanted.encode(), manifest.witness.encode()):
                return checksum
        return None


def find_spaces(view: View, wanted: Sequence[str] = ()) -> list[FoundSpace]:
    """Every key space, or those `wanted`, in the order of names.

    Raises InvalidSettings where one is not there, where `view` is of a key space itself, and
    where one is of a newer format; OSError where the store cannot be listed.
    """
    names = {entry.name for entry in view.entries()}
    if MANIFEST_NAME in names and "blocks" in names:
        above, name = _split(view.place)
        raise InvalidSettings(
            f"{view.place} is one key space of a store; name the store and the key space: "
            f"{above} --space {name}"
        )
    found = space_names(view)
    if missing := sorted(set(wanted) - set(found)):
        known = ", ".join(found) or "none"
        raise InvalidSettings(f"no key space {missing[0]} in {view.place}; there are: {known}")
    return [_read(view, name) for name in found if not wanted or name in wanted]


def space_names(view: View) -> list[str]:
    """Folders that look like key spaces, in the order of names. Raises OSError."""
    return [
        entry.name
        for entry in view.entries()
        if entry.is_folder and _NAME.fullmatch(entry.name) and _is_space(view, entry.name)
    ]


def parse_space(name: str, raw: bytes | None) -> FoundSpace:
    """What the bytes of its manifest make of the key space `name`; None: there is no manifest."""
    if raw is None:
        return FoundSpace(name, None, "is missing")
    version = _version(raw)
    if version is not None and version > FORMAT:
        return FoundSpace(
            name, None, f"is of format {version}, of a newer kvtier: upgrade this one"
        )
    try:
        manifest = parse_manifest(raw)
    except InvalidSettings as error:
        return FoundSpace(name, None, f"is damaged: {error}")
    if mistake := _mistake(name, manifest):
        return FoundSpace(name, None, mistake)
    return FoundSpace(name, manifest, None)


def _is_space(view: View, name: str) -> bool:
    try:
        parts = (entry.name.rpartition("/")[2] for entry in view.entries(name))
        return any(part in (MANIFEST_NAME, "blocks") for part in parts)
    except OSError:
        return True  # it looks like one; what is wrong with it is told by who looks into it


def _split(place: str) -> tuple[str, str]:
    """The place above, and the name there."""
    whole = place if "://" in place else os.path.abspath(place)
    above, _, name = whole.rpartition("/")
    return above or "/", name


def _read(view: View, name: str) -> FoundSpace:
    try:
        raw = view.read(f"{name}/{MANIFEST_NAME}", MANIFEST_BYTES_MAX)
    except OSError as error:
        return FoundSpace(name, None, f"cannot be read: {error.strerror}")
    version = None if raw is None else _version(raw)
    if version is not None and version > FORMAT:
        raise InvalidSettings(
            f"{view.place}/{name} has format {version}, of a newer kvtier; this one reads "
            f"{FORMAT}: upgrade it, or name the other key spaces with --space"
        )
    return parse_space(name, raw)


def _version(raw: bytes) -> int | None:
    """None where it is damaged."""
    try:
        return manifest_format(raw)
    except InvalidSettings:
        return None


def _mistake(name: str, manifest: SpaceManifest) -> str | None:
    space = manifest.space
    right = space_folder(space)
    if right != name:
        return f"is of another key space: {right}"
    if not 1 <= space.block_bytes <= BLOCK_BYTES_MAX:
        return f"tells of blocks of {space.block_bytes} bytes, which no engine has"
    if manifest.algorithm not in (_PLAIN, _KEYED):
        return f"names checksum algorithm {manifest.algorithm}, which this kvtier does not know"
    if manifest.algorithm == _PLAIN and Secrets().fitting(manifest) is None:
        return "is damaged: its witness differs"
    return None


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


class FileKind(Enum):
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


class StoreLayout:
    """The map of one store with the key spaces of these names."""

    def __init__(self, spaces: Iterable[str]) -> None:
        self._spaces = {name: number for number, name in enumerate(sorted(spaces))}

    def of(self, name: str) -> FileKind:
        """What the file is. Costs a regular expression or two."""
        top, _, below = name.partition("/")
        if is_temporary(name.rpartition("/")[2]):
            return FileKind.TEMPORARY
        if name in (CURSOR_NAME, STORE_CURSOR_NAME):
            return FileKind.CURSOR
        if top == _LEASES and below:
            return FileKind.LEASE
        return _in_space(below) if top in self._spaces else FileKind.UNKNOWN

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


def _in_space(below: str) -> FileKind:
    if below == MANIFEST_NAME:
        return FileKind.MANIFEST
    if parse_segment_name(below) is not None:
        return FileKind.SEGMENT
    for pattern, place in (
        (_JOURNAL, FileKind.JOURNAL),
        (_SUMMARY, FileKind.SUMMARY),
        (_QUARANTINED, FileKind.QUARANTINED),
        (_MISPLACED, FileKind.MISPLACED),
    ):
        if pattern.fullmatch(below):
            return place
    return FileKind.UNKNOWN
