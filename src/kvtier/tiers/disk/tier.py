"""The local-disk tier: the contract of `tiers/base.py` on a slab with a log.

Every guarantee rests on the order of steps:
* write: the bytes go into a free slot, then the record into the log, then the block into the
  index;
* delete: the block leaves the index, then its deletion is recorded, then the slot becomes free
  once no read of it is in flight;
* read: the bytes are read, then verified, and only then the outcome is DONE.

Invariants:
* bytes whose checksum differs from the one taken when they were offered are never DONE;
* `_commit` serializes changes of index and log and is held during log writes; `_lock` guards the
  index and is never held during I/O; `_commit` is taken before `_lock`;
* reads of healthy blocks take only `_lock`, twice per batch.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from kvtier.blocks.key import BlockKey, KeySpace
from kvtier.blocks.layout import BlockLayout
from kvtier.clock import Clock, MonotonicClock
from kvtier.tiers.base import BlockMove, Capabilities, Outcome, ScanPage
from kvtier.tiers.disk.folder import OnMismatch
from kvtier.tiers.disk.journal import CHUNK_FRAMES
from kvtier.tiers.disk.log import KEY_BYTES_MAX, Put
from kvtier.tiers.disk.opening import SlabRequest, open_slab
from kvtier.tiers.disk.slab import BlockIO, Place
from kvtier.tiers.faults import FaultLog, TierIO
from kvtier.tiers.files import DirectIO, SystemCalls


class _Batch(NamedTuple):
    """The slots that a batch is written to."""

    places: list[Place]
    repeats: list[tuple[int, int]]
    """For a key that occurs again in the batch: its position, and that of its first occurrence."""


class DiskTier:
    """A tier that keeps its blocks in segment files in one folder.

    `capacity_bytes` bounds everything in the folder. `io_threads` only tells callers how many
    threads are useful. Tests replace `files`, which makes the system calls, and `clock`, which
    measures how long a fault has not recurred. Raises InvalidSettings naming the setting if the
    folder cannot be used as asked.
    """

    def __init__(
        self,
        folder: Path,
        capacity_bytes: int,
        layout: BlockLayout,
        space: KeySpace,
        *,
        io_threads: int = 4,
        direct: DirectIO = "auto",
        on_mismatch: OnMismatch = "refuse",
        files: SystemCalls | None = None,
        clock: Clock | None = None,
    ) -> None:
        request = SlabRequest(folder, capacity_bytes, layout, space, direct, on_mismatch)
        opened = open_slab(request, files or SystemCalls())
        self._folder, self._slab, self._slots, self._journal = opened
        self._block_bytes = layout.block_bytes
        self._slot_bytes = layout.slot_bytes
        self._faults = FaultLog(f"disk tier {folder}", clock or MonotonicClock())
        self._blocks = BlockIO(self._slab, self._slots, layout, self._faults)
        self._counters = TierIO()
        self._commit = threading.Lock()
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._running = 0
        self._closed = False
        self._capabilities = Capabilities(
            name="disk",
            capacity_blocks=self._slots.count,
            persistent=True,
            io_threads=io_threads,
        )

    @property
    def capabilities(self) -> Capabilities:
        """What callers may rely on; fixed at construction."""
        return self._capabilities

    @property
    def counters(self) -> TierIO:
        """A copy of the counters since the tier was opened."""
        with self._lock:
            return msgspec.structs.replace(self._counters, faults=self._faults.count)

    def contains(self, keys: Sequence[BlockKey]) -> list[bool]:
        """Return for each key whether the block is held. One dictionary lookup each, no I/O."""
        if self._closed:
            return [False] * len(keys)
        held = self._slots.slot_of
        return [key in held for key in keys]

    def read_into(self, moves: Sequence[BlockMove]) -> list[Outcome]:
        """Fill each buffer and verify it. Neighboring slots are read in one system call."""
        outcomes = [Outcome.MISSING] * len(moves)
        places = self._begin_reads(moves, outcomes)
        if not places:
            return outcomes
        try:
            places.sort()
            self._blocks.read(places, moves, outcomes)
            corrupt = [i for _, i in places if outcomes[i] is Outcome.CORRUPT]
            if corrupt:
                self._remove_corrupt(places, corrupt, moves)
        finally:
            self._end_reads(places, outcomes)
        return outcomes

    def _begin_reads(self, moves: Sequence[BlockMove], outcomes: list[Outcome]) -> list[Place]:
        places: list[Place] = []
        slots = self._slots
        with self._lock:
            if self._closed:
                return places
            for i, (key, buffer) in enumerate(moves):
                slot = slots.slot_of.get(key)
                if slot is None:
                    continue
                if buffer.nbytes != self._slot_bytes:
                    outcomes[i] = Outcome.FAILED
                    continue
                slots.begin_read(slot)
                places.append((slot, i))
            if places:
                self._running += 1
        return places

    def _remove_corrupt(
        self, places: Sequence[Place], corrupt: Sequence[int], moves: Sequence[BlockMove]
    ) -> None:
        """Remove corrupt blocks. The caller's reads keep their slots from becoming free."""
        slot_at = {i: slot for slot, i in places}
        with self._commit:
            with self._lock:
                removed = []
                for i in corrupt:
                    key = moves[i].key
                    if self._slots.slot_of.get(key) == slot_at[i]:
                        self._slots.remove(key)
                        removed.append(slot_at[i])
                self._counters.corruptions += len(removed)
            self._record_deletions(removed)

    def _end_reads(self, places: Sequence[Place], outcomes: Sequence[Outcome]) -> None:
        done = sum(outcomes[i] is Outcome.DONE for _, i in places)
        with self._lock:
            self._slots.end_reads([slot for slot, _ in places])
            self._counters.bytes_read += done * self._block_bytes
            self._end_operation()

    def write_from(
        self, moves: Sequence[BlockMove], parents: Sequence[BlockKey | None]
    ) -> list[Outcome]:
        """Keep each block. Neighboring slots are written in one call, a batch is logged in one."""
        outcomes = [Outcome.FAILED] * len(moves)
        if self._journal.unrecorded:
            self._record_pending_deletions()
        batch = self._begin_writes(moves, parents, outcomes)
        if batch is None:
            return outcomes
        published: set[int] = set()
        try:
            published = self._publish(self._blocks.write(batch.places, moves, parents))
        finally:
            self._end_writes(batch.places, published, moves, outcomes)
        for i, first in batch.repeats:
            outcomes[i] = outcomes[first]
        return outcomes

    def _begin_writes(
        self,
        moves: Sequence[BlockMove],
        parents: Sequence[BlockKey | None],
        outcomes: list[Outcome],
    ) -> _Batch | None:
        first_at: dict[BlockKey, int] = {}
        repeats: list[tuple[int, int]] = []
        with self._lock:
            if self._closed:
                return None
            held = self._slots.slot_of
            for i, (key, buffer) in enumerate(moves):
                if key in held:
                    outcomes[i] = Outcome.DONE
                elif key in first_at:
                    repeats.append((i, first_at[key]))
                elif (
                    buffer.nbytes == self._slot_bytes
                    and len(key) <= KEY_BYTES_MAX
                    and len(parents[i] or b"") <= KEY_BYTES_MAX
                ):
                    first_at[key] = i
            if not first_at:
                return None
            self._running += 1
            taken = self._slots.take(len(first_at))
        return _Batch(list(zip(taken, first_at.values(), strict=False)), repeats)

    def _publish(self, puts: Sequence[Put]) -> set[int]:
        """Record blocks, then enter them into the index; return their slots.

        A block that another thread has entered meanwhile is left out.
        """
        published: set[int] = set()
        held = self._slots.slot_of
        for start in range(0, len(puts), CHUNK_FRAMES):
            chunk = puts[start : start + CHUNK_FRAMES]
            with self._commit:
                fresh = [put for put in chunk if put.key not in held]
                try:
                    self._journal.put(fresh)
                except OSError as error:
                    self._faults.report("record", error)
                    break
                with self._lock:
                    for put in fresh:
                        self._slots.publish(put)
                    self._counters.bytes_written += len(fresh) * self._block_bytes
            self._faults.succeeded("record")
            published.update(put.slot for put in fresh)
        return published

    def _end_writes(
        self,
        places: Sequence[Place],
        published: set[int],
        moves: Sequence[BlockMove],
        outcomes: list[Outcome],
    ) -> None:
        unused: list[int] = []
        with self._lock:
            held = self._slots.slot_of
            for slot, i in places:
                if slot in published:
                    outcomes[i] = Outcome.DONE
                    continue
                unused.append(slot)
                if moves[i].key in held:  # Another thread wrote the same block meanwhile.
                    outcomes[i] = Outcome.DONE
            if unused:
                self._slots.release(unused)
            self._end_operation()

    def delete(self, keys: Sequence[BlockKey]) -> list[Outcome]:
        """Remove blocks with one log write per batch.

        The outcome is DONE even if the log write failed and has to be repeated later.
        """
        outcomes = [Outcome.MISSING] * len(keys)
        removed: list[int] = []
        with self._commit:
            with self._lock:
                if self._closed:
                    return outcomes
                for i, key in enumerate(keys):
                    slot = self._slots.remove(key)
                    if slot is not None:
                        removed.append(slot)
                        outcomes[i] = Outcome.DONE
            self._record_deletions(removed)
        return outcomes

    def _record_deletions(self, slots: Sequence[int]) -> None:
        """Record deletions and free the slots. Call with `_commit` held."""
        if not slots and not self._journal.unrecorded:
            return
        try:
            recorded = self._journal.delete(slots)
        except OSError as error:
            self._faults.report("record", error)
            return
        self._faults.succeeded("record")
        with self._lock:
            self._slots.retire(recorded)

    def _record_pending_deletions(self) -> None:
        """Record deletions that a fault kept out of the log, because their slots are needed."""
        with self._commit:
            if not self._closed:
                self._record_deletions([])

    def scan(self, cursor: int | None = None) -> ScanPage:
        """Return a page of the blocks held. Each page visits all slots: about 1 ms per million."""
        with self._lock:
            if self._closed:
                return ScanPage([], None)
            return self._slots.page(cursor or 0)

    def _end_operation(self) -> None:
        """Count a read or write as ended. Call with `_lock` held."""
        self._running -= 1
        if not self._running:
            self._idle.notify_all()

    def close(self) -> None:
        """Wait for calls in flight, write a checkpoint if that is quick, release everything."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            while self._running:
                self._idle.wait()
        with self._commit:
            try:
                self._journal.close()
            except OSError as error:
                self._faults.report("checkpoint", error)
            self._slab.close()
            self._folder.close()
