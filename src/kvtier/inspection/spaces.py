"""The key spaces of a store, as their manifests tell.

Invariant: a key space whose manifest cannot be trusted has none here, but the reason why.
"""

import hmac
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from kvtier.blocks.checksum import Checksum, HmacSha256, Xxh3, load_key
from kvtier.errors import InvalidSettings
from kvtier.inspection.view import View
from kvtier.tiers.files import MANIFEST_NAME, manifest_format
from kvtier.tiers.shared.format import space_folder
from kvtier.tiers.shared.manifest import FORMAT, SpaceManifest, manifest_of, parse_manifest

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


def judge(name: str, raw: bytes | None) -> FoundSpace:
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
    return judge(name, raw)


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
