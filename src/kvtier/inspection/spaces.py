"""The key spaces of a store, and what each file of a store is by its name.

Invariants: a key space whose manifest is missing or invalid has no manifest here, but the reason.
A file with an unexpected name is UNKNOWN, and is left alone.
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
"""No engine has larger blocks; a manifest that claims so would exhaust the memory."""
MANIFEST_BYTES_MAX: Final = 1 << 20
_NAME = re.compile(r".+-[0-9a-f]{16}")
CURSOR_NAME: Final = ".kvtier-fsck.json"
"""File in which a check of a folder saves its position. Stores do not list names with a dot."""
STORE_CURSOR_NAME: Final = "leases/fsck.json"
"""The same in a bucket, beside the evictors' leases, where no engine looks."""
_LEASES = "leases"
_IN_SPACE = frozenset({"blocks", "access", "quarantine"})
_FAN_OUT = re.compile(r"[0-9a-f]{3}")
_MISPLACED = re.compile(r"blocks/(?:[^/]+/)?(?:[0-9a-f]{2})+\.kvt")
_JOURNAL = re.compile(r"access/[^/]+-\d{8,}\.log")
_SUMMARY = re.compile(r"access/summary-[0-9a-f]\.\d{10}\.bin")
_QUARANTINED = re.compile(r"quarantine/[^/]+\.kvt")
_PLAIN, _KEYED = Xxh3.algorithm, HmacSha256.algorithm


class FoundSpace(NamedTuple):
    """A folder of a key space, with either `manifest` or `mistake`."""

    name: str
    manifest: SpaceManifest | None
    mistake: str | None
    """Why the manifest is unusable; completes the sentence "the manifest …"."""

    @property
    def is_keyed(self) -> bool:
        """Whether verifying the key space requires a secret."""
        return self.manifest is not None and self.manifest.algorithm == _KEYED


class Secrets:
    """The secrets from --key-file, each of which may belong to any key space."""

    def __init__(self, key_files: Sequence[Path] = ()) -> None:
        """Load the secrets. Raises InvalidSettings as `load_key` does."""
        self._keyed = [HmacSha256(load_key(path, "--key-file")) for path in key_files]

    @property
    def sealer(self) -> Checksum:
        """A checksum with the first secret, to seal the cursor with; without one, a plain one."""
        return self._keyed[0] if self._keyed else Xxh3()

    def checksum_of(self, manifest: SpaceManifest) -> Checksum | None:
        """Return the checksum that verifies a key space; None if its secret is not among these."""
        known = self._keyed if manifest.algorithm == _KEYED else [Xxh3()]
        for checksum in known:
            wanted = manifest_of(manifest.space, checksum).witness
            if hmac.compare_digest(wanted.encode(), manifest.witness.encode()):
                return checksum
        return None


def find_spaces(view: View, wanted: Sequence[str] = ()) -> list[FoundSpace]:
    """Return every key space of a store, or those `wanted`, sorted by name.

    Raises InvalidSettings if a wanted one does not exist, if `view` shows a key space instead of a
    store, and if a manifest has a newer format; OSError if the store cannot be listed.
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
    """Return the folders that look like key spaces, sorted by name. Raises OSError."""
    return [
        entry.name
        for entry in view.entries()
        if entry.is_folder and _NAME.fullmatch(entry.name) and _is_space(view, entry.name)
    ]


def parse_space(name: str, raw: bytes | None) -> FoundSpace:
    """Return the key space `name` with the manifest in `raw`; None: the manifest is missing."""
    if raw is None:
        return FoundSpace(name, None, "is missing")
    version = _version(raw)
    if version is not None and version > FORMAT:
        return FoundSpace(name, None, f"has format {version}, of a newer kvtier: upgrade this one")
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
        return True  # its name says so; reading the manifest will report the error


def _split(place: str) -> tuple[str, str]:
    """Split `place` into its parent and its last name."""
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
    """Return the format of a manifest; None if it is damaged."""
    try:
        return manifest_format(raw)
    except InvalidSettings:
        return None


def _mistake(name: str, manifest: SpaceManifest) -> str | None:
    space = manifest.space
    right = space_folder(space)
    if right != name:
        return f"belongs to another key space: {right}"
    if not 1 <= space.block_bytes <= BLOCK_BYTES_MAX:
        return f"claims blocks of {space.block_bytes} bytes, which no engine has"
    if manifest.algorithm not in (_PLAIN, _KEYED):
        return f"names checksum algorithm {manifest.algorithm}, which this kvtier does not know"
    if manifest.algorithm == _PLAIN and Secrets().checksum_of(manifest) is None:
        return "is damaged: its witness does not match"
    return None


class FileKind(Enum):
    """What a file of a store is, by its name."""

    MANIFEST = "manifest"
    SEGMENT = "segment"
    MISPLACED = "misplaced"
    """Named like a segment, but in a folder where no engine looks for it."""
    JOURNAL = "journal"
    SUMMARY = "summary"
    """Summary of the access journals that an evictor has folded."""
    QUARANTINED = "quarantined"
    LEASE = "lease"
    TEMPORARY = "temporary"
    CURSOR = "cursor"
    UNKNOWN = "unknown"


class StoreLayout:
    """The names that a store with the given key spaces can have."""

    def __init__(self, spaces: Iterable[str]) -> None:
        self._spaces = {name: number for number, name in enumerate(sorted(spaces))}

    def kind_of(self, name: str) -> FileKind:
        """Return what the file `name` is."""
        top, _, below = name.partition("/")
        if is_temporary(name.rpartition("/")[2]):
            return FileKind.TEMPORARY
        if name in (CURSOR_NAME, STORE_CURSOR_NAME):
            return FileKind.CURSOR
        if top == _LEASES and below:
            return FileKind.LEASE
        return _in_space(below) if top in self._spaces else FileKind.UNKNOWN

    def looks_into(self, folder: str) -> bool:
        """Return True if a walk over the store has to descend into `folder`."""
        top, *below = folder.split("/")
        if top == _LEASES:
            return True
        if top not in self._spaces:
            return False
        if len(below) < 2:
            return not below or below[0] in _IN_SPACE
        return len(below) == 2 and below[0] == "blocks" and bool(_FAN_OUT.fullmatch(below[1]))

    def share_done(self, name: str) -> float:
        """Estimate the share of the store, 0 to 1, that a walk has passed when it is at `name`.

        Keys are hashes, so the segments of a key space are spread evenly over its folders.
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
    for pattern, kind in (
        (_JOURNAL, FileKind.JOURNAL),
        (_SUMMARY, FileKind.SUMMARY),
        (_QUARANTINED, FileKind.QUARANTINED),
        (_MISPLACED, FileKind.MISPLACED),
    ):
        if pattern.fullmatch(below):
            return kind
    return FileKind.UNKNOWN
