"""From checkpoint and log to the index, after a clean stop or any other.

What does not fit is dropped: a checkpoint or a frame that fails its check, a slot outside the
bound or the files, an older claim to a slot or a key. A claim that survives although its bytes
are not there fails the block's own checksum at its first read.
"""

from collections.abc import Callable
from typing import NamedTuple

from kvtier.tiers.disk import checkpoint, log
from kvtier.tiers.disk.folder import Folder
from kvtier.tiers.disk.log import Log, Put
from kvtier.tiers.disk.slots import SlotMap


class Recovered(NamedTuple):
    """How the start went."""

    generation: int
    """Of the log as it is now."""
    dropped: int
    """Records that pointed outside the slab."""
    cut_bytes: int
    """Bytes of the log that could not be believed."""


def recover(
    folder: Folder, journal: Log, slots: SlotMap, stored: Callable[[int], bool]
) -> Recovered:
    """Fill `slots`, and leave the log ready for appending. Raises OSError."""
    snapshot = checkpoint.load(folder)
    raw = journal.read()
    history = log.replay(raw)
    generation = 0 if snapshot is None else snapshot.generation
    dropped = 0
    if snapshot is not None:
        for put in snapshot.puts:
            dropped += _replay(slots, put, stored)
    # A log older than the checkpoint is wholly inside it: the process died between the two.
    if history is not None and history.generation >= generation:
        for record in history.records:
            if isinstance(record, Put):
                dropped += _replay(slots, record, stored)
            elif stored(record.slot):
                slots.empty(record.slot)
        generation = history.generation
        cut_bytes = len(raw) - history.whole_bytes
        if cut_bytes:
            journal.cut(history.whole_bytes)
    else:
        cut_bytes = len(raw) if history is None else 0
        # One above whatever was there, so that no frame of it can pass again.
        generation = max(generation, 1 if history is None else history.generation + 1)
        journal.restart(generation)
    slots.rebuild_free()
    return Recovered(generation, dropped, cut_bytes)


def _replay(slots: SlotMap, put: Put, stored: Callable[[int], bool]) -> int:
    """Returns 1 if the record had to be dropped."""
    if not stored(put.slot):
        return 1
    slots.replay(put)
    return 0
