"""The local-disk tier: the contract of `tiers/base.py` on a slab with a log.

Order of events, which every guarantee rests on. Write: bytes into a free slot, then the
record, then the index. Delete: out of the index, then the record, then, when no read is in
flight, the slot is free. Read: bytes, then their checksum, then DONE.

Invariants: no bytes are DONE that do not match the checksum taken when they were offered; two
locks, `_commit` (who changes index and log, held over log writes) before `_lock` (the index,
never held over I/O); reads of healthy blocks take `_lock` only, twice a batch.
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
from kvtier.tiers.disk.files import FileIO, OsFiles
from kvtier.tiers.disk.journal import CHUNK_FRAMES
from kvtier.tiers.disk.log import KEY_BYTES_MAX, Put
from kvtier.tiers.disk.opening import Direct, OnMismatch, Wanted, open_slab
from kvtier.tiers.disk.payload import Payload
from kvtier.tiers.disk.runs import Place
from kvtier.tiers.faults import FaultLog, TierIO


class _Batch(NamedTuple):
    """Where a batch is written."""

    places: list[Place]
    twins: list[tuple[int, int]]
    """Position of a key that was offered before in the batch, and that earlier position."""


class DiskTier:
    """Blocks in segment files of one folder. See `kvtier.tiers.base.Tier`.

    `capacity_bytes` bounds everything in the folder. `io_threads` only tells callers how many
    threads pay. `files` is the operating system and `clock`
    the time between a fault and its all-clear; tests own both. Raises
    InvalidSettings, naming the setting, where the folder cannot be used as asked.
    """

    def __init__(
        self,
        folder: Path,
        capacity_bytes: int,
        layout: BlockLayout,
        space: KeySpace,
        *,
        io_threads: int = 4,
        direct: Direct = "auto",
        on_mismatch: OnMismatch = "refuse",
        files: FileIO | None = None,
        clock: Clock | None = None,
    ) -> None:
        wanted = Wanted(folder, capacity_bytes, layout, space, direct, on_mismatch)
        opened = open_slab(wanted, files or OsFiles())
        self._folder, self._slab, self._slots, self._journal = opened
        self._block_bytes = layout.block_bytes
        self._slot_bytes = layout.slot_bytes
        self._faults = FaultLog(f"disk tier {folder}", clock or MonotonicClock())
        self._payload = Payload(self._slab, self._slots, layout, self._faults)
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
        """See Tier."""
        return self._capabilities

    @property
    def counters(self) -> TierIO:
        """A copy of what was counted since the tier was opened."""
        with self._lock:
            return msgspec.structs.replace(self._counters, faults=self._faults.count)

    def contains(self, keys: Sequence[BlockKey]) -> list[bool]:
        """See Tier. One dictionary lookup a key, no lock, no I/O."""
        if self._closed:
            return [False] * len(keys)
        held = self._slots.slot_of
        return [key in held for key in keys]

    def read_into(self, moves: Sequence[BlockMove]) -> list[Outcome]:
        """See Tier. Neighbouring slots are read in one call; each block is verified."""
        outcomes = [Outcome.MISSING] * len(moves)
        places = self._begin_reads(moves, outcomes)
        if not places:
            return outcomes
        try:
            places.sort()
            self._payload.read(places, moves, outcomes)
            corrupt = [i for _, i in places if outcomes[i] is Outcome.CORRUPT]
            if corrupt:
                self._drop(places, corrupt, moves)
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

    def _drop(
        self, places: Sequence[Place], corrupt: Sequence[int], moves: Sequence[BlockMove]
    ) -> None:
        """Forget corrupt blocks; ours are still in flight, so no slot is free before we end."""
        slot_at = {i: slot for slot, i in places}
        with self._commit:
            with self._lock:
                gone = []
                for i in corrupt:
                    key = moves[i].key
                    if self._slots.slot_of.get(key) == slot_at[i]:
                        self._slots.forget(key)
                        gone.append(slot_at[i])
                self._counters.corruptions += len(gone)
            self._record_deletions(gone)

    def _end_reads(self, places: Sequence[Place], outcomes: Sequence[Outcome]) -> None:
        done = sum(outcomes[i] is Outcome.DONE for _, i in places)
        with self._lock:
            self._slots.end_reads([slot for slot, _ in places])
            self._counters.bytes_read += done * self._block_bytes
            self._end_operation()

    def write_from(
        self, moves: Sequence[BlockMove], parents: Sequence[BlockKey | None]
    ) -> list[Outcome]:
        """See Tier. Neighbouring slots are written in one call; one log write a batch."""
        outcomes = [Outcome.FAILED] * len(moves)
        if self._journal.owed:
            self._settle()
        batch = self._begin_writes(moves, parents, outcomes)
        if batch is None:
            return outcomes
        published: set[int] = set()
        try:
            published = self._publish(self._payload.write(batch.places, moves, parents))
        finally:
            self._end_writes(batch.places, published, moves, outcomes)
        for i, first in batch.twins:
            outcomes[i] = outcomes[first]
        return outcomes

    def _begin_writes(
        self,
        moves: Sequence[BlockMove],
        parents: Sequence[BlockKey | None],
        outcomes: list[Outcome],
    ) -> _Batch | None:
        first_at: dict[BlockKey, int] = {}
        twins: list[tuple[int, int]] = []
        with self._lock:
            if self._closed:
                return None
            held = self._slots.slot_of
            for i, (key, buffer) in enumerate(moves):
                if key in held:
                    outcomes[i] = Outcome.DONE
                elif key in first_at:
                    twins.append((i, first_at[key]))
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
        return _Batch(list(zip(taken, first_at.values(), strict=False)), twins)

    def _publish(self, puts: Sequence[Put]) -> set[int]:
        """Record, then show. Who comes first with a key keeps it. Returns the slots shown."""
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
            self._faults.works("record")
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
                if moves[i].key in held:  # another thread wrote the same block meanwhile
                    outcomes[i] = Outcome.DONE
            if unused:
                self._slots.give_back(unused)
            self._end_operation()

    def delete(self, keys: Sequence[BlockKey]) -> list[Outcome]:
        """See Tier. One log write a batch; DONE even where that must be repeated later."""
        outcomes = [Outcome.MISSING] * len(keys)
        gone: list[int] = []
        with self._commit:
            with self._lock:
                if self._closed:
                    return outcomes
                for i, key in enumerate(keys):
                    slot = self._slots.forget(key)
                    if slot is not None:
                        gone.append(slot)
                        outcomes[i] = Outcome.DONE
            self._record_deletions(gone)
        return outcomes

    def _record_deletions(self, gone: Sequence[int]) -> None:
        """Call with `_commit` held."""
        if not gone and not self._journal.owed:
            return
        try:
            settled = self._journal.delete(gone)
        except OSError as error:
            self._faults.report("record", error)
            return
        self._faults.works("record")
        with self._lock:
            self._slots.retire(settled)

    def _settle(self) -> None:
        """Record deletions that a fault had kept from the log: their slots are wanted."""
        with self._commit:
            if not self._closed:
                self._record_deletions([])

    def scan(self, cursor: int | None = None) -> ScanPage:
        """See Tier. Costs a pass over the slots a page: about 1 ms a million."""
        with self._lock:
            if self._closed:
                return ScanPage([], None)
            return self._slots.page(cursor or 0)

    def _end_operation(self) -> None:
        """Call with `_lock` held."""
        self._running -= 1
        if not self._running:
            self._idle.notify_all()

    def close(self) -> None:
        """See Tier. Waits for calls in flight; writes a checkpoint where that is quick."""
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
