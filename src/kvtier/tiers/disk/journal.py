"""What is recorded of the index on disk: log and checkpoint as one bounded thing.

Invariants: the log never passes its bound, it is folded into a checkpoint first; a checkpoint
is durable before the log it replaces is emptied, and nothing is appended in between; a deletion
that could not be recorded is owed, and its slot is given to nobody until it is recorded.

Not thread-safe: DiskTier lets one thread in at a time.
"""

from collections.abc import Sequence

from kvtier.tiers.disk import checkpoint
from kvtier.tiers.disk.folder import Folder
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
"""Frames in one write call: they fit the smallest bound a log can have."""
_CLOSE_BLOCKS = 1_000_000
"""A larger index is not folded at close: replaying its log costs the next start as little."""


class Journal:
    """Records changes of `slots`, and reads them for checkpoints. Raises OSError."""

    def __init__(
        self, folder: Folder, log: Log, slots: SlotMap, *, limit_bytes: int, generation: int
    ) -> None:
        self._folder = folder
        self._log = log
        self._slots = slots
        self._limit_bytes = limit_bytes
        self._generation = generation
        self._stale = False
        self.owed: list[int] = []
        """Slots whose deletion is not recorded yet."""

    def put(self, puts: Sequence[Put]) -> None:
        """Record at most CHUNK_FRAMES blocks, in one write; publish them afterwards."""
        self._make_room(len(puts))
        generation = self._generation
        self._log.append(b"".join([put_frame(put, generation) for put in puts]))

    def delete(self, slots: Sequence[int]) -> list[int]:
        """Record deletions, owed ones first; returns the slots that are no longer claimed.

        Owes what it could not record, and raises OSError where that is everything.
        """
        self.owed.extend(slots)
        settled: list[int] = []
        while self.owed:
            chunk = self.owed[:CHUNK_FRAMES]
            try:
                self._make_room(len(chunk))
                generation = self._generation
                self._log.append(b"".join([delete_frame(slot, generation) for slot in chunk]))
            except OSError:
                if not settled:
                    raise
                break
            del self.owed[: len(chunk)]
            settled += chunk
        return settled

    def checkpoint(self) -> None:
        """Fold the log into a checkpoint. Costs about 1 us a block held, and two syncs."""
        # Until the new log is there, the old one may already be void: nothing is appended.
        # Each attempt has its own generation, so that a failed one is never mistaken.
        self._stale = True
        self._generation += 1
        checkpoint.save(self._folder, self._slots, self._generation)
        self._log.restart(self._generation)
        self._stale = False

    def close(self) -> None:
        """Leave as short a log as is cheap, durably. The descriptor is closed in any case."""
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
