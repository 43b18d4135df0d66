"""The slab: segment files with aligned slots, which hold the bytes of the blocks.

A segment is allocated whole before its first slot is written, so a write into an allocated
segment cannot run out of space. A run of neighboring slots is one preadv or pwritev from or into
the caller's buffers. With O_DIRECT, a buffer that the device cannot reach (EINVAL) goes through
the page cache instead; the kernel keeps the two views of a file consistent.
"""

import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence

from kvtier.blocks.checksum import Xxh3
from kvtier.blocks.key import BlockKey
from kvtier.blocks.layout import BlockLayout
from kvtier.tiers.base import BlockMove, Buffer, Outcome
from kvtier.tiers.disk.folder import SEGMENT_PREFIX, DiskFolder
from kvtier.tiers.disk.log import Put
from kvtier.tiers.disk.slots import SlotMap
from kvtier.tiers.faults import FaultLog
from kvtier.tiers.files import supports_direct_io

Place = tuple[int, int]
"""A slot, and the position in the batch of the block that is read from it or written to it."""

RUN_BLOCKS_MAX = 1024
"""Buffers that one preadv or pwritev takes at most (IOV_MAX)."""
_RUN_BYTES = 2 << 20
"""One system call moves about this much: enough to keep the disk busy, and little enough to
still be in the processor's cache when it is verified."""

_Call = Callable[[int, Sequence[Buffer], int], int]


def folder_supports_direct_io(folder: DiskFolder) -> bool:
    """Return True if O_DIRECT works in the folder. Writes a page and reads it back."""
    try:
        return supports_direct_io(folder.files, folder.fd, folder.temporary_name())
    except OSError:
        return False


class Slab:
    """`slots` slots of `slot_bytes` in segment files. Thread-safe; methods raise OSError."""

    def __init__(
        self, folder: DiskFolder, slot_bytes: int, slots: int, segment_slots: int, open_flags: int
    ) -> None:
        self.segment_slots = segment_slots
        self._folder = folder
        self._files = folder.files
        self._slot_bytes = slot_bytes
        self._slots = slots
        self._flags = os.O_RDWR | open_flags
        count = -(-slots // segment_slots)
        self._fds = [-1] * count
        self._allocated = [False] * count
        self._buffered: dict[int, int] = {}
        """Segment number to a second descriptor that uses the page cache."""
        self._lock = threading.Lock()

    @property
    def direct(self) -> bool:
        """True if the page cache is bypassed."""
        return bool(self._flags & os.O_DIRECT)

    def stored_slots(self) -> Callable[[int], bool]:
        """Return a predicate: does the slot lie within the capacity and the existing files?"""
        ends = [
            segment * self.segment_slots + self._length(segment) // self._slot_bytes
            for segment in range(len(self._fds))
        ]
        return lambda slot: slot < self._slots and slot < ends[slot // self.segment_slots]

    def _length(self, segment: int) -> int:
        return min(self._folder.file_bytes(_name(segment)), self._segment_bytes(segment))

    def trim(self) -> None:
        """Remove or cut segments that an earlier, larger capacity allocated."""
        for name in self._folder.names():
            number = name.removeprefix(SEGMENT_PREFIX)
            if number == name or not number.isdecimal():
                continue
            if int(number) >= len(self._fds):
                self._folder.remove(name)
            elif self._folder.file_bytes(name) > self._segment_bytes(int(number)):
                self._files.truncate(self._open(int(number)), self._segment_bytes(int(number)))

    def read(self, slot: int, buffers: Sequence[Buffer]) -> int:
        """Fill buffers from neighboring slots of one segment.

        Returns how many, from the first on, were filled: fewer than asked if the file ends there.
        """
        segment, index = divmod(slot, self.segment_slots)
        if self._fds[segment] < 0:
            self._open(segment)
        return self._move(self._files.preadv, segment, index * self._slot_bytes, buffers)

    def write(self, slot: int, buffers: Sequence[Buffer]) -> int:
        """Write buffers to neighboring slots of one segment; return how many are whole."""
        segment, index = divmod(slot, self.segment_slots)
        if not self._allocated[segment]:
            self._allocate(segment)
        return self._move(self._files.pwritev, segment, index * self._slot_bytes, buffers)

    def _move(self, call: _Call, segment: int, offset: int, buffers: Sequence[Buffer]) -> int:
        wanted = len(buffers) * self._slot_bytes
        moved = self._call(call, segment, buffers, offset)
        while moved < wanted:
            whole, part = divmod(moved, self._slot_bytes)
            rest = [buffers[whole][part:], *buffers[whole + 1 :]]
            step = self._call(call, segment, rest, offset + moved)
            if step == 0:
                break
            moved += step
        return moved // self._slot_bytes

    def _call(self, call: _Call, segment: int, buffers: Sequence[Buffer], offset: int) -> int:
        try:
            return call(self._fds[segment], buffers, offset)
        except OSError as error:
            if error.errno != errno.EINVAL or not self.direct:
                raise
        return call(self._open_buffered(segment), buffers, offset)

    def _open(self, segment: int) -> int:
        with self._lock:
            if self._fds[segment] < 0:
                self._fds[segment] = self._folder.open_file(_name(segment), self._flags)
            return self._fds[segment]

    def _open_buffered(self, segment: int) -> int:
        with self._lock:
            if segment not in self._buffered:
                self._buffered[segment] = self._folder.open_file(_name(segment), os.O_RDWR)
            return self._buffered[segment]

    def _allocate(self, segment: int) -> None:
        with self._lock:
            if self._allocated[segment]:
                return
            if self._fds[segment] < 0:
                flags = self._flags | os.O_CREAT
                self._fds[segment] = self._folder.open_file(_name(segment), flags)
            fd = self._fds[segment]
            length = self._files.stat_open(fd).st_size
            try:
                self._files.allocate(fd, self._segment_bytes(segment))
            except OSError:
                # Half an allocation is useless here, and others may need the space.
                self._files.truncate(fd, length)
                raise
            self._allocated[segment] = True

    def _segment_bytes(self, segment: int) -> int:
        slots = min(self.segment_slots, self._slots - segment * self.segment_slots)
        return slots * self._slot_bytes

    def close(self) -> None:
        """Close the descriptors. No call may be in flight. Idempotent."""
        with self._lock:
            for fd in (*self._fds, *self._buffered.values()):
                if fd >= 0:
                    self._files.close(fd)
            self._fds = [-1] * len(self._fds)
            self._buffered.clear()


def _name(segment: int) -> str:
    return f"{SEGMENT_PREFIX}{segment:05d}"


def split_runs(
    places: Sequence[Place], segment_slots: int, run_blocks: int
) -> Iterator[Sequence[Place]]:
    """Split `places`, ascending by slot, into runs of neighboring slots of one segment.

    A run has at most `run_blocks` slots, so that one system call moves it.
    """
    limit = min(run_blocks, RUN_BLOCKS_MAX)
    start = 0
    for end in range(1, len(places) + 1):
        if (
            end == len(places)
            or end - start == limit
            or places[end][0] != places[end - 1][0] + 1
            or places[end][0] % segment_slots == 0
        ):
            yield places[start:end]
            start = end


class BlockIO:
    """Reads and writes batches of blocks, and takes and verifies their checksums.

    Thread-safe; raises nothing for a fault. Invariant: an outcome is DONE only if the bytes in
    the caller's buffer have the checksum that was recorded for this key. A run is verified right
    after its system call, in the same thread, while other threads use the disk.
    """

    def __init__(self, slab: Slab, slots: SlotMap, layout: BlockLayout, faults: FaultLog) -> None:
        self._slab = slab
        self._slots = slots
        self._checksum = Xxh3()
        self._block_bytes = layout.block_bytes
        self._run_blocks = max(1, _RUN_BYTES // layout.slot_bytes)
        self._faults = faults

    def read(
        self, places: Sequence[Place], moves: Sequence[BlockMove], outcomes: list[Outcome]
    ) -> None:
        """Fill the buffers from the slots (ascending) and set the outcome of each block."""
        for run in split_runs(places, self._slab.segment_slots, self._run_blocks):
            self._read_run(run, moves, outcomes)

    def write(
        self,
        places: Sequence[Place],
        moves: Sequence[BlockMove],
        parents: Sequence[BlockKey | None],
    ) -> list[Put]:
        """Write the buffers to the slots (ascending); return the records of those written."""
        puts: list[Put] = []
        for run in split_runs(places, self._slab.segment_slots, self._run_blocks):
            puts += self._write_run(run, moves, parents)
        return puts

    def _read_run(
        self, run: Sequence[Place], moves: Sequence[BlockMove], outcomes: list[Outcome]
    ) -> None:
        try:
            whole = self._slab.read(run[0][0], [moves[i].buffer for _, i in run])
        except OSError as error:
            if len(run) > 1:  # Read the blocks one by one to find those that fail.
                for place in run:
                    self._read_run([place], moves, outcomes)
                return
            self._faults.report("read", error)
            outcomes[run[0][1]] = Outcome.FAILED
            return
        self._faults.succeeded("read")
        block_bytes = self._block_bytes
        for slot, i in run[:whole]:
            key, buffer = moves[i]
            good = self._slots.checksum(slot) == self._checksum.block(key, buffer[:block_bytes])
            outcomes[i] = Outcome.DONE if good else Outcome.CORRUPT
        # The file ends before the remaining blocks: their bytes are lost.
        for _, i in run[whole:]:
            outcomes[i] = Outcome.CORRUPT

    def _write_run(
        self, run: Sequence[Place], moves: Sequence[BlockMove], parents: Sequence[BlockKey | None]
    ) -> list[Put]:
        """Write one run; return the records of the blocks whose bytes are now in their slots."""
        block_bytes = self._block_bytes
        puts: list[Put] = []
        buffers: list[Buffer] = []
        for slot, i in run:
            key, buffer = moves[i]
            buffers.append(buffer)
            checksum = self._checksum.block(key, buffer[:block_bytes])
            puts.append(Put(slot, key, parents[i], checksum))
        try:
            whole = self._slab.write(run[0][0], buffers)
        except OSError as error:
            self._faults.report("write", error)
            return []
        if whole == len(run):
            self._faults.succeeded("write")
        return puts[:whole]
