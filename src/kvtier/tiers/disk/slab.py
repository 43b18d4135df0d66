"""Segment files with aligned slots: where the bytes of the blocks are.

Segments are allocated whole before their first slot is written, so a write into an allocated
segment cannot run out of space. A run of neighbouring slots is one preadv or pwritev from or
into the caller's buffers. With O_DIRECT a buffer the device cannot reach (EINVAL) goes through
the page cache instead; the kernel keeps the two views of a file in step.
"""

import errno
import mmap
import os
import threading
from collections.abc import Callable, Sequence

import numpy as np

from kvtier.blocks.layout import ALIGNMENT
from kvtier.tiers.base import Buffer
from kvtier.tiers.disk.folder import Folder
from kvtier.tiers.disk.manifest import SEGMENT_PREFIX

_Transfer = Callable[[int, Sequence[Buffer], int], int]


def has_direct(folder: Folder) -> bool:
    """Whether O_DIRECT works in the folder: a page is written and read back."""
    name = folder.temporary_name()
    page = mmap.mmap(-1, 2 * ALIGNMENT)
    both = np.frombuffer(page, dtype=np.uint8)
    written, read = both[:ALIGNMENT], both[ALIGNMENT:]
    written[:] = np.arange(ALIGNMENT, dtype=np.uint32).astype(np.uint8)
    try:
        fd = folder.open_file(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_DIRECT)
        try:
            folder.files.pwritev(fd, [written], 0)
            folder.files.preadv(fd, [read], 0)
        finally:
            folder.files.close(fd)
    except OSError:
        return False
    finally:
        folder.remove(name)
    return bool(np.array_equal(written, read))


class Slab:
    """`slots` slots of `slot_bytes`. Safe from any thread; raises OSError."""

    def __init__(
        self, folder: Folder, slot_bytes: int, slots: int, segment_slots: int, open_flags: int
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
        self._lock = threading.Lock()

    @property
    def direct(self) -> bool:
        """Whether the page cache is bypassed."""
        return bool(self._flags & os.O_DIRECT)

    def stored_slots(self) -> Callable[[int], bool]:
        """A test whether a slot is wholly inside the bound and inside the files there are."""
        ends = [
            segment * self.segment_slots + self._length(segment) // self._slot_bytes
            for segment in range(len(self._fds))
        ]
        return lambda slot: slot < self._slots and slot < ends[slot // self.segment_slots]

    def _length(self, segment: int) -> int:
        return min(self._folder.file_bytes(_name(segment)), self._segment_bytes(segment))

    def trim(self) -> None:
        """Give back what earlier, larger bounds had allocated."""
        for name in self._folder.names():
            number = name.removeprefix(SEGMENT_PREFIX)
            if number == name or not number.isdecimal():
                continue
            if int(number) >= len(self._fds):
                self._folder.remove(name)
            elif self._folder.file_bytes(name) > self._segment_bytes(int(number)):
                self._files.truncate(self._open(int(number)), self._segment_bytes(int(number)))

    def read(self, slot: int, buffers: Sequence[Buffer]) -> int:
        """Fill buffers from neighbouring slots of one segment.

        Returns how many, from the first on, were filled; fewer than asked: the file ends there.
        """
        segment, index = divmod(slot, self.segment_slots)
        if self._fds[segment] < 0:
            self._open(segment)
        return self._move(self._files.preadv, segment, index * self._slot_bytes, buffers)

    def write(self, slot: int, buffers: Sequence[Buffer]) -> int:
        """Write buffers to neighbouring slots of one segment; returns how many are whole."""
        segment, index = divmod(slot, self.segment_slots)
        if not self._allocated[segment]:
            self._allocate(segment)
        return self._move(self._files.pwritev, segment, index * self._slot_bytes, buffers)

    def _move(self, call: _Transfer, segment: int, offset: int, buffers: Sequence[Buffer]) -> int:
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

    def _call(self, call: _Transfer, segment: int, buffers: Sequence[Buffer], offset: int) -> int:
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
            length = self._files.size(fd)
            try:
                self._files.allocate(fd, self._segment_bytes(segment))
            except OSError:
                # Half an allocation is of no use to us and may be what others wait for.
                self._files.truncate(fd, length)
                raise
            self._allocated[segment] = True

    def _segment_bytes(self, segment: int) -> int:
        slots = min(self.segment_slots, self._slots - segment * self.segment_slots)
        return slots * self._slot_bytes

    def close(self) -> None:
        """Give the descriptors back. No call may be in flight. Idempotent."""
        with self._lock:
            for fd in (*self._fds, *self._buffered.values()):
                if fd >= 0:
                    self._files.close(fd)
            self._fds = [-1] * len(self._fds)
            self._buffered.clear()


def _name(segment: int) -> str:
    return f"{SEGMENT_PREFIX}{segment:05d}"
