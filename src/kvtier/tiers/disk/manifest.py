"""What the slab of a folder is for: format, slot size and key space, as one JSON file.

A slab of another key space holds bytes that would be wrong for this engine, so it is
refused, with the fields that differ, or replaced on request.
"""

from typing import Literal

import msgspec

from kvtier.blocks.key import KeySpace
from kvtier.blocks.layout import BlockLayout
from kvtier.errors import InvalidSettings
from kvtier.tiers.disk.checkpoint import CHECKPOINT_NAME
from kvtier.tiers.disk.folder import Folder
from kvtier.tiers.disk.log import LOG_NAME

MANIFEST_NAME = "manifest.json"
SEGMENT_PREFIX = "segment-"
FORMAT = 1


class _Versioned(msgspec.Struct, frozen=True):
    format: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Content of the manifest. Slot numbers mean nothing without `segment_slots`."""

    format: int
    block_bytes: int
    slot_bytes: int
    segment_slots: int
    space: KeySpace


def adopt(
    folder: Folder,
    layout: BlockLayout,
    space: KeySpace,
    segment_slots: int,
    on_mismatch: Literal["refuse", "replace"],
) -> Manifest:
    """The manifest the slab goes by: the one found if it fits, else a new one on an empty slab.

    Raises InvalidSettings where a slab is found that does not fit and may not be replaced, and
    OSError.
    """
    wanted = Manifest(
        format=FORMAT,
        block_bytes=layout.block_bytes,
        slot_bytes=layout.slot_bytes,
        segment_slots=segment_slots,
        space=space,
    )
    raw = folder.read(MANIFEST_NAME)
    if raw is not None:
        found = _parse(raw)
        differences = _differences(wanted, found)
        if isinstance(found, Manifest) and not differences:
            return found
        if on_mismatch == "refuse":
            raise InvalidSettings(
                f"disk.path: {folder.path} holds a slab that does not fit this engine "
                f"({'; '.join(differences)}); name another folder, or set "
                "disk.on_mismatch: replace to delete it"
            )
        # The old manifest goes last: a half-erased slab is still known as a slab.
        for name in _slab_names(folder):
            folder.remove(name)
    elif strangers := _slab_names(folder):
        raise InvalidSettings(
            f"disk.path: {folder.path} has no {MANIFEST_NAME} but files named as a slab's "
            f"({', '.join(strangers[:3])}); name an empty folder or remove them"
        )
    folder.replace(MANIFEST_NAME, [msgspec.json.encode(wanted, order="sorted")])
    return wanted


def _parse(raw: bytes) -> Manifest | _Versioned | None:
    try:
        version = msgspec.json.decode(raw, type=_Versioned)
        if version.format != FORMAT:
            return version
        return msgspec.json.decode(raw, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _differences(wanted: Manifest, found: Manifest | _Versioned | None) -> list[str]:
    """`field: mine != theirs` for each."""
    if found is None:
        return [f"{MANIFEST_NAME} cannot be read"]
    if not isinstance(found, Manifest):
        return [f"format: {wanted.format} != {found.format}"]
    sizes = [
        f"{name}: {getattr(wanted, name)} != {getattr(found, name)}"
        for name in ("block_bytes", "slot_bytes")
        if getattr(wanted, name) != getattr(found, name)
    ]
    return sizes + wanted.space.differing(found.space)


def _slab_names(folder: Folder) -> list[str]:
    """Files that only a slab has, the manifest apart."""
    return [
        name
        for name in folder.names()
        if name in (CHECKPOINT_NAME, LOG_NAME) or name.startswith(SEGMENT_PREFIX)
    ]
