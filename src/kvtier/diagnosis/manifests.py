"""Reads the key spaces of a place.

A place is a shared folder, a bucket, a disk tier's folder, one key space of a store, or a single
manifest. Invariant: a place is only read. What cannot be read is reported as a failed check.
"""

import re
from pathlib import Path
from typing import NamedTuple

import msgspec

from kvtier.diagnosis.comparison import LocatedSpace
from kvtier.diagnosis.report import Check, failed, fine
from kvtier.errors import InvalidSettings
from kvtier.inspection.folder_view import FolderView
from kvtier.inspection.opening import is_url, open_view
from kvtier.inspection.spaces import MANIFEST_BYTES_MAX, FoundSpace, parse_space, space_names
from kvtier.inspection.view import View, printable
from kvtier.tiers.disk.folder import SlabManifest
from kvtier.tiers.files import MANIFEST_NAME
from kvtier.tiers.shared.format import space_folder
from kvtier.tiers.shared.manifest import parse_manifest

_REPLICA = re.compile(r"replica-\d+")


class PlaceContents(NamedTuple):
    """The key spaces of one place, and the checks made while reading them."""

    spaces: list[LocatedSpace]
    checks: list[Check]


def read_place(place: str) -> PlaceContents:
    """Read the key spaces of a place, with a few system calls or requests per key space.

    A place that cannot be read gives a failed check.
    """
    shown = printable(place)
    try:
        if not is_url(place) and Path(place).is_file():
            path = Path(place)
            return _gather(shown, [_file(path.parent, path.name, shown)], "a manifest")
        view = open_view(place, "PLACE")
        try:
            return _read_view(shown, view)
        finally:
            view.close()
    except InvalidSettings as error:
        return PlaceContents([], [failed(shown, str(error))])
    except OSError as error:
        return PlaceContents([], [failed(shown, f"cannot be read ({error.strerror or error})")])


def _read_view(place: str, view: View) -> PlaceContents:
    names = {entry.name for entry in view.entries()}
    if MANIFEST_NAME in names:
        what = "one key space of a store" if "blocks" in names else "a disk tier"
        return _gather(place, [_manifest(view, MANIFEST_NAME, place)], what)
    if replicas := sorted(filter(_REPLICA.fullmatch, names)):
        found = [_manifest(view, f"{name}/{MANIFEST_NAME}", place) for name in replicas]
        return _gather(place, found, f"a disk tier of {len(replicas)} replicas")
    spaces = [_read_space(view, name) for name in space_names(view)]
    what = "a bucket" if is_url(view.place) else "a shared folder"
    return _gather(place, [_located(place, each) for each in spaces], what)


def _read_space(view: View, name: str) -> FoundSpace:
    try:
        return parse_space(name, view.read(f"{name}/{MANIFEST_NAME}", MANIFEST_BYTES_MAX))
    except OSError as error:
        return FoundSpace(name, None, f"cannot be read: {error.strerror or error}")


def _file(folder: Path, name: str, place: str) -> LocatedSpace | Check:
    view = FolderView(folder)
    try:
        return _manifest(view, name, place)
    finally:
        view.close()


def _manifest(view: View, name: str, place: str) -> LocatedSpace | Check:
    """Read the manifest of a shared key space or of a disk tier."""
    try:
        raw = view.read(name, MANIFEST_BYTES_MAX)
        if raw is None:
            return failed(place, f"there is no {name}")
        return _parsed(raw, place)
    except InvalidSettings as error:
        return failed(place, f"{name}: {error}")
    except OSError as error:
        return failed(place, f"{name} cannot be read ({error.strerror or error})")


def _parsed(raw: bytes, place: str) -> LocatedSpace:
    """Parse either kind of manifest. Raises InvalidSettings for anything else."""
    try:
        found = parse_manifest(raw)
        return LocatedSpace(place, space_folder(found.space), found.space, found.witness)
    except InvalidSettings:
        try:
            space = msgspec.json.decode(raw, type=SlabManifest).space
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass  # the error of the store's format is the more helpful one
        else:
            return LocatedSpace(place, space_folder(space), space)
        raise


def _located(place: str, found: FoundSpace) -> LocatedSpace | Check:
    if found.manifest is None:
        return failed(
            place,
            f"{printable(found.name)}: its {MANIFEST_NAME} {found.mistake}",
            "Engines refuse this key space: `kvtier fsck` says more; remove the folder if it is "
            "not used.",
        )
    return LocatedSpace(place, found.name, found.manifest.space, found.manifest.witness)


def _gather(place: str, found: list[LocatedSpace | Check], what: str) -> PlaceContents:
    """Combine what was found in a place; equal key spaces, as of several replicas, count once."""
    spaces: dict[str, LocatedSpace] = {}
    wrong = []
    for each in found:
        if isinstance(each, Check):
            wrong.append(each)
        else:
            spaces.setdefault(each.space.digest, each)
    count = len(spaces)
    text = f"{what} with {count or 'no'} key space{'' if count == 1 else 's'}"
    return PlaceContents(list(spaces.values()), [fine(place, text), *wrong])
