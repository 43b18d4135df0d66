"""The journal of a slab's index: the log and the checkpoint as one bounded store, and recovery.

Invariants:
* the log never exceeds its limit; it is folded into a checkpoint first;
* a checkpoint is durable before the log it replaces is emptied, and nothing is appended in
  between;
* a deletion that could not be recorded stays pending, and its slot is not reused before it is
  recorded.

Recovery discards whatever is inconsistent: a checkpoint or a frame that fails its check, a slot
outside the capacity or the files, an older record of the same slot or key. If a record survives
although the block's bytes were lost, the block fails its own checksum at the first read.

Not thread-safe: DiskTier serializes the calls.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from kvtier.tiers.disk import checkpoint
from kvtier.tiers.disk import log as log_format
from kvtier.tiers.disk.folder import DiskFolder
from kvtier.tiers.disk.log import (
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    Log,
    Put,
    delete_frame,
    put_frame,
)
from kvtier.tiers.disk.slots import SlotMap

CHUNK_FRAMES = 256
"""Frames per write call: they fit into the smallest limit that a log can have."""
_CLOSE_BLOCKS = 1_000_000
"""At close, a larger index is not folded into a checkpoint: replaying its log at the next start
costs as little."""


class IndexJournal:
    """Records the changes of `slots`, which it also reads for checkpoints. Raises OSError."""

    def __init__(
        self, folder: DiskFolder, log: Log, slots: SlotMap, *, limit_bytes: int, generation: int
    ) -> None:
        self._folder = folder
        self._log = log
        self._slots = slots
        self._limit_bytes = limit_bytes
        self._generation = generation
        self._stale = False
        self.unrecorded: list[int] = []
        """Slots whose deletion is not recorded yet."""

    def put(self, puts: Sequence[Put]) -> None:
        """Record at most CHUNK_FRAMES blocks in one write. Publish them afterwards."""
        self._make_room(len(puts))
        generation = self._generation
        self._log.append(b"".join([put_frame(put, generation) for put in puts]))

    def delete(self, slots: Sequence[int]) -> list[int]:
        """Record deletions, `unrecorded` ones first; return the slots whose deletion is recorded.

        What could not be recorded goes to `unrecorded`. Raises OSError if nothing was recorded.
        """
        self.unrecorded.extend(slots)
        recorded: list[int] = []
        while self.unrecorded:
            chunk = self.unrecorded[:CHUNK_FRAMES]
            try:
                self._make_room(len(chunk))
                generation = self._generation
                self._log.append(b"".join([delete_frame(slot, generation) for slot in chunk]))
            except OSError:
                if not recorded:
                    raise
                break
            del self.unrecorded[: len(chunk)]
            recorded += chunk
        return recorded

    def checkpoint(self) -> None:
        """Fold the log into a checkpoint. Costs about 1 us per block held, and two syncs."""
        # The old log is invalid as soon as the checkpoint exists, so nothing is appended until
        # the log has restarted. Each attempt has its own generation, so that the log of a failed
        # attempt is never mistaken for the current one.
        self._stale = True
        self._generation += 1
        checkpoint.save(self._folder, self._slots, self._generation)
        self._log.restart(self._generation)
        self._stale = False

    def close(self) -> None:
        """Write a checkpoint if that is cheap, or else sync the log. Always closes the log."""
        try:
            if self._stale or self._log.size_bytes > HEADER_BYTES:
                if len(self._slots) <= _CLOSE_BLOCKS:
                    self.checkpoint()
                else:
                    self._log.sync()
        finally:
            self._log.close()

    def _make_room(self, frames: int) -> None:
        need_bytes = frames * MAX_FRAME_BYTES
        if self._stale or self._log.size_bytes + need_bytes > self._limit_bytes:
            self.checkpoint()


class Recovery(NamedTuple):
    """The result of `recover`."""

    generation: int
    """Generation of the log as it is now."""
    discarded: int
    """Records that pointed outside the slab."""
    cut_bytes: int
    """Bytes of the log that failed their checks."""


def recover(
    folder: DiskFolder, log: Log, slots: SlotMap, stored: Callable[[int], bool]
) -> Recovery:
    """Fill `slots` from checkpoint and log, and leave the log ready for appending.

    `stored` tells whether a slot lies within the capacity and the files. Raises OSError.
    """
    snapshot = checkpoint.load(folder)
    raw = log.read()
    content = log_format.decode(raw)
    generation = 0 if snapshot is None else snapshot.generation
    discarded = 0
    if snapshot is not None:
        for put in snapshot.puts:
            discarded += _replay(slots, put, stored)
    # A log older than the checkpoint is contained in it: the process died after it had written
    # the checkpoint and before it restarted the log.
    if content is not None and content.generation >= generation:
        for record in content.records:
            if isinstance(record, Put):
                discarded += _replay(slots, record, stored)
            elif stored(record.slot):
                slots.empty(record.slot)
        generation = content.generation
        cut_bytes = len(raw) - content.whole_bytes
        if cut_bytes:
            log.cut(content.whole_bytes)
    else:
        cut_bytes = len(raw) if content is None else 0
        # A higher generation than before, so that none of the old frames passes its check.
        generation = max(generation, 1 if content is None else content.generation + 1)
        log.restart(generation)
    slots.rebuild_free()
    return Recovery(generation, discarded, cut_bytes)


def _replay(slots: SlotMap, put: Put, stored: Callable[[int], bool]) -> int:
    """Apply one record; return 1 if it was discarded, else 0."""
    if not stored(put.slot):
        return 1
    slots.replay(put)
    return 0
