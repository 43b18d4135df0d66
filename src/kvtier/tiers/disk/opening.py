"""From settings to an open slab: every check that may refuse to start is here.

Raises InvalidSettings naming the setting and the fix, and holds nothing when it raised.
"""

import logging
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, NamedTuple

from kvtier.blocks.key import KeySpace
from kvtier.blocks.layout import BlockLayout
from kvtier.errors import InvalidSettings
from kvtier.tiers.disk import space
from kvtier.tiers.disk.files import FileIO
from kvtier.tiers.disk.folder import Folder, open_folder
from kvtier.tiers.disk.journal import Journal
from kvtier.tiers.disk.log import Log
from kvtier.tiers.disk.manifest import adopt
from kvtier.tiers.disk.recovery import recover
from kvtier.tiers.disk.slab import Slab, has_direct
from kvtier.tiers.disk.slots import SlotMap

logger = logging.getLogger(__name__)

Direct = Literal["auto", "always", "never"]
OnMismatch = Literal["refuse", "replace"]


class Opened(NamedTuple):
    """The parts of a slab, recovered and ready."""

    folder: Folder
    slab: Slab
    slots: SlotMap
    journal: Journal


class Wanted(NamedTuple):
    """What the settings and the engine ask for."""

    path: Path
    capacity_bytes: int
    layout: BlockLayout
    space: KeySpace
    direct: Direct
    on_mismatch: OnMismatch


def open_slab(wanted: Wanted, files: FileIO) -> Opened:
    """Lock the folder, check it, recover its index."""
    budget = space.divide(wanted.capacity_bytes, wanted.layout.slot_bytes)
    with ExitStack() as undo:
        try:
            folder = open_folder(wanted.path, files)
            undo.callback(folder.close)
            opened = _open_parts(wanted, budget, folder, undo)
        except OSError as error:
            raise InvalidSettings(
                f"disk.path: {wanted.path} cannot be used ({error}); "
                "name a folder that this user can read and write"
            ) from error
        undo.pop_all()
    return opened


def _open_parts(wanted: Wanted, budget: space.Budget, folder: Folder, undo: ExitStack) -> Opened:
    folder.remove_temporaries()
    slot_bytes = wanted.layout.slot_bytes
    segment_slots = space.segment_slots(wanted.capacity_bytes, slot_bytes)
    found = adopt(folder, wanted.layout, wanted.space, segment_slots, wanted.on_mismatch)
    slab = Slab(folder, slot_bytes, budget.slots, found.segment_slots, _flags(wanted, folder))
    undo.callback(slab.close)
    slab.trim()
    space.require_room(folder.fd, folder.occupied_bytes(), wanted.capacity_bytes)
    log = Log(folder)
    undo.callback(log.close)
    slots = SlotMap(budget.slots)
    recovered = recover(folder, log, slots, slab.stored_slots())
    if recovered.dropped or recovered.cut_bytes:
        logger.warning(
            "disk tier %s: %d records outside the slab dropped, %d bytes of the log cut off",
            wanted.path,
            recovered.dropped,
            recovered.cut_bytes,
        )
    journal = Journal(
        folder, log, slots, limit_bytes=budget.log_bytes, generation=recovered.generation
    )
    if recovered.dropped or log.size_bytes > budget.log_bytes:
        journal.checkpoint()  # what a larger bound had left must not count against this one
    logger.info(
        "disk tier %s: %d of %d blocks found, %s",
        wanted.path,
        len(slots),
        budget.slots,
        "O_DIRECT" if slab.direct else "page cache (no O_DIRECT)",
    )
    return Opened(folder, slab, slots, journal)


def _flags(wanted: Wanted, folder: Folder) -> int:
    """O_DIRECT or 0."""
    if wanted.direct == "never":
        return 0
    if has_direct(folder):
        return os.O_DIRECT
    if wanted.direct == "always":
        raise InvalidSettings(
            f"disk.direct_io: the file system of {wanted.path} has no O_DIRECT; "
            "set auto or never, or name a folder on another file system"
        )
    return 0
