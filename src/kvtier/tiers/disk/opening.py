"""Opening a slab: every check of the disk tier that may refuse to start is here.

The capacity in bytes is physical: segments, log, checkpoint, the checkpoint's temporary copy and
the few small files together stay below it at every moment. So each slot is charged with its
share of the log and of two checkpoints.
"""

import logging
import os
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import msgspec

from kvtier.blocks.key import KeySpace
from kvtier.blocks.layout import BlockLayout
from kvtier.errors import InvalidSettings
from kvtier.tiers.disk.checkpoint import MAX_ROW_BYTES
from kvtier.tiers.disk.folder import DiskFolder, OnMismatch, adopt_manifest, lock_folder
from kvtier.tiers.disk.journal import IndexJournal, recover
from kvtier.tiers.disk.log import MAX_FRAME_BYTES, Log
from kvtier.tiers.disk.slab import Slab, folder_supports_direct_io
from kvtier.tiers.disk.slots import SlotMap
from kvtier.tiers.files import DirectIO, SystemCalls

logger = logging.getLogger(__name__)

SLOTS_MIN = 4
_SEGMENT_BYTES = 1 << 30
_SEGMENTS_AIM = 128
_LOG_BYTES_MIN = 64 * 1024
_SMALL_FILES_BYTES = 64 * 1024
"""Lock, manifest and its temporary copy, direct-I/O probe, rounding by the file system."""
_SLOT_SHARE_BYTES = 2 * MAX_ROW_BYTES + MAX_FRAME_BYTES


class SlabRequest(NamedTuple):
    """The slab that the settings and the engine ask for."""

    path: Path
    capacity_bytes: int
    layout: BlockLayout
    space: KeySpace
    direct: DirectIO
    on_mismatch: OnMismatch


class OpenSlab(NamedTuple):
    """The parts of a slab, recovered and ready for use."""

    folder: DiskFolder
    slab: Slab
    slots: SlotMap
    journal: IndexJournal


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """The slots and the log size that a capacity allows."""

    slots: int
    log_bytes: int
    """Size at which the log is folded into a checkpoint."""


def open_slab(request: SlabRequest, files: SystemCalls) -> OpenSlab:
    """Lock and check the folder, and recover its index.

    Raises InvalidSettings naming the setting and the fix; then nothing stays open or locked.
    """
    budget = divide(request.capacity_bytes, request.layout.slot_bytes)
    with ExitStack() as undo:
        try:
            folder = lock_folder(request.path, files)
            undo.callback(folder.close)
            opened = _open_parts(request, budget, folder, undo)
        except OSError as error:
            raise InvalidSettings(
                f"disk.path: {request.path} cannot be used ({error}); "
                "name a folder that this user can read and write"
            ) from error
        undo.pop_all()
    return opened


def _open_parts(
    request: SlabRequest, budget: Budget, folder: DiskFolder, undo: ExitStack
) -> OpenSlab:
    folder.remove_temporaries()
    slot_bytes = request.layout.slot_bytes
    manifest = adopt_manifest(
        folder,
        request.layout,
        request.space,
        segment_slots(request.capacity_bytes, slot_bytes),
        request.on_mismatch,
    )
    flags = _direct_flag(request, folder)
    slab = Slab(folder, slot_bytes, budget.slots, manifest.segment_slots, flags)
    undo.callback(slab.close)
    slab.trim()
    require_room(folder.fd, folder.occupied_bytes(), request.capacity_bytes)
    log = Log(folder)
    undo.callback(log.close)
    slots = SlotMap(budget.slots)
    recovered = recover(folder, log, slots, slab.stored_slots())
    if recovered.discarded or recovered.cut_bytes:
        logger.warning(
            "disk tier %s: discarded %d records outside the slab, cut %d bytes off the log",
            request.path,
            recovered.discarded,
            recovered.cut_bytes,
        )
    journal = IndexJournal(
        folder, log, slots, limit_bytes=budget.log_bytes, generation=recovered.generation
    )
    if recovered.discarded or log.size_bytes > budget.log_bytes:
        # What a larger capacity left in the log must not count against this one.
        journal.checkpoint()
    logger.info(
        "disk tier %s: %d of %d blocks found, %s",
        request.path,
        len(slots),
        budget.slots,
        "O_DIRECT" if slab.direct else "page cache (no O_DIRECT)",
    )
    return OpenSlab(folder, slab, slots, journal)


def _direct_flag(request: SlabRequest, folder: DiskFolder) -> int:
    """Return O_DIRECT if segments are to be opened with it, else 0."""
    if request.direct == "never":
        return 0
    if folder_supports_direct_io(folder):
        return os.O_DIRECT
    if request.direct == "always":
        raise InvalidSettings(
            f"disk.direct_io: the file system of {request.path} has no O_DIRECT; "
            "set auto or never, or name a folder on another file system"
        )
    return 0


def divide(capacity_bytes: int, slot_bytes: int) -> Budget:
    """Divide the capacity. Raises InvalidSettings if it cannot hold SLOTS_MIN slots."""
    slots = (capacity_bytes - capacity_for(0, slot_bytes)) // (slot_bytes + _SLOT_SHARE_BYTES)
    if slots < SLOTS_MIN:
        raise InvalidSettings(
            f"disk.capacity: {capacity_bytes} bytes hold {max(slots, 0)} blocks of {slot_bytes} "
            f"bytes; set at least {capacity_for(SLOTS_MIN, slot_bytes)}"
        )
    return Budget(slots=slots, log_bytes=_LOG_BYTES_MIN + slots * MAX_FRAME_BYTES)


def capacity_for(slots: int, slot_bytes: int) -> int:
    """Return the smallest capacity, in bytes, that holds `slots`: the inverse of `divide`."""
    return _LOG_BYTES_MIN + _SMALL_FILES_BYTES + slots * (slot_bytes + _SLOT_SHARE_BYTES)


def segment_slots(capacity_bytes: int, slot_bytes: int) -> int:
    """Return the slots of a segment: 1 GiB, or more to keep the number of descriptors low."""
    return max(1, max(_SEGMENT_BYTES, capacity_bytes // _SEGMENTS_AIM) // slot_bytes)


def require_room(folder_fd: int, occupied_bytes: int, capacity_bytes: int) -> None:
    """Raise InvalidSettings if the file system has less space than the capacity promises."""
    stat = os.fstatvfs(folder_fd)
    room = stat.f_bavail * stat.f_frsize + occupied_bytes
    if capacity_bytes > room:
        raise InvalidSettings(
            f"disk.capacity: {capacity_bytes} bytes are more than the file system can give "
            f"({room} bytes, of which the folder occupies {occupied_bytes}); "
            f"set at most {room} or free space"
        )
