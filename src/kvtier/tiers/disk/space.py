"""From a byte bound to a number of slots.

The bound is physical: segments, log, checkpoint, the checkpoint's temporary copy and the few
small files together stay below it at every moment, so each slot is charged with its share.
"""

import os

import msgspec

from kvtier.errors import InvalidSettings
from kvtier.tiers.disk.checkpoint import MAX_ROW_BYTES
from kvtier.tiers.disk.log import MAX_FRAME_BYTES

SLOTS_MIN = 4
_SEGMENT_BYTES = 1 << 30
_SEGMENTS_AIM = 128
_LOG_BYTES_MIN = 64 * 1024
_SMALL_FILES_BYTES = 64 * 1024
"""Lock, manifest and its temporary, probe, file-system rounding."""
_SLOT_SHARE_BYTES = 2 * MAX_ROW_BYTES + MAX_FRAME_BYTES


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """How a byte bound is divided."""

    slots: int
    log_bytes: int
    """Size at which the log is folded into a checkpoint."""


def divide(capacity_bytes: int, slot_bytes: int) -> Budget:
    """Split the bound. Raises InvalidSettings where it cannot hold SLOTS_MIN slots."""
    slots = (capacity_bytes - capacity_for(0, slot_bytes)) // (slot_bytes + _SLOT_SHARE_BYTES)
    if slots < SLOTS_MIN:
        raise InvalidSettings(
            f"disk.capacity: {capacity_bytes} bytes hold {max(slots, 0)} blocks of {slot_bytes} "
            f"bytes; set at least {capacity_for(SLOTS_MIN, slot_bytes)}"
        )
    return Budget(slots=slots, log_bytes=_LOG_BYTES_MIN + slots * MAX_FRAME_BYTES)


def capacity_for(slots: int, slot_bytes: int) -> int:
    """The smallest bound, in bytes, that holds `slots`: what `divide` undoes."""
    return _LOG_BYTES_MIN + _SMALL_FILES_BYTES + slots * (slot_bytes + _SLOT_SHARE_BYTES)


def segment_slots(capacity_bytes: int, slot_bytes: int) -> int:
    """Slots of one segment file: 1 GiB, more where that would need too many descriptors."""
    return max(1, max(_SEGMENT_BYTES, capacity_bytes // _SEGMENTS_AIM) // slot_bytes)


def require_room(folder_fd: int, occupied_bytes: int, capacity_bytes: int) -> None:
    """Raise InvalidSettings if the file system cannot give what the bound promises."""
    stat = os.fstatvfs(folder_fd)
    room = stat.f_bavail * stat.f_frsize + occupied_bytes
    if capacity_bytes > room:
        raise InvalidSettings(
            f"disk.capacity: {capacity_bytes} bytes are more than the file system can give "
            f"({room} bytes, of which the folder occupies {occupied_bytes}); "
            f"set at most {room} or free space"
        )
