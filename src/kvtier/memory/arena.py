"""Host RAM as one shared mapping of fixed slots.

Why one mapping: the scheduler decides which slot a block lives in, the workers copy to and
from it, and tiers read and write it in place, so all of them must see the same pages. It is an
anonymous memory file: it has no name in the file system and dies with its last process,
so a killed engine leaves nothing in /dev/shm.

Invariant: every slot below `slots` is either free here or owned by exactly one caller.
"""

import ctypes
import mmap
import os
import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kvtier.blocks.layout import ALIGNMENT
from kvtier.errors import Closed, InvalidSettings

_NAME = "kvtier-arena"
_MADV_HUGEPAGE = 14
_MADV_POPULATE_WRITE = 23
_POPULATE_STEP_BYTES = 64 * 1024 * 1024
_HUGE_PAGE_BYTES = 2 * 1024 * 1024

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

Slot = int
"""Number of a slot, 0 <= slot < Arena.slots."""


class Arena:
    """Fixed slots in one shared, page-aligned mapping.

    `allocate` and `release` belong to one thread, the one that decides; `array` and `view` may
    be used from any thread. Nothing here blocks but `wait_populated` and `close`.
    """

    def __init__(self, fd: int, slots: int, slot_bytes: int) -> None:
        self.slots = slots
        self.slot_bytes = slot_bytes
        self._fd = fd
        self._map = mmap.mmap(fd, slots * slot_bytes, mmap.MAP_SHARED)
        flat = np.frombuffer(self._map, dtype=np.uint8)
        self.array: npt.NDArray[np.uint8] = flat.reshape(slots, slot_bytes)
        """Shape [slots, slot_bytes]; each row starts on a page boundary."""
        self._address = int(self.array.ctypes.data)
        _libc.madvise(self._address, slots * slot_bytes, _MADV_HUGEPAGE)
        # Fresh slots are handed out in rising order, so that population, which runs in the
        # same order, stays ahead; released ones are reused first, while they are warm.
        self._fresh = 0
        self._released: list[Slot] = []
        self._stop = threading.Event()
        self._populator: threading.Thread | None = None

    @classmethod
    def create(cls, slots: int, slot_bytes: int) -> "Arena":
        """A new arena of `slots` x `slot_bytes`, its pages being populated in the background.

        Raises InvalidSettings if the sizes cannot make an arena. Costs microseconds; the
        population runs at memory speed behind it.
        """
        if slots < 1 or slot_bytes < 1 or slot_bytes % ALIGNMENT:
            raise InvalidSettings(
                f"an arena needs at least one slot of a multiple of {ALIGNMENT} bytes, "
                f"not {slots} of {slot_bytes}"
            )
        fd = os.memfd_create(_NAME, os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, slots * slot_bytes)
            arena = cls(fd, slots, slot_bytes)
        except (OSError, ValueError, OverflowError) as error:
            os.close(fd)
            raise InvalidSettings(
                f"ram.capacity: cannot map {slots * slot_bytes} bytes: {error}"
            ) from error
        arena._start_populating()
        return arena

    @classmethod
    def attach(cls, handle: str) -> "Arena":
        """Map another process's arena by its `handle`; that process keeps deciding.

        Needs the same user on the same host. Raises InvalidSettings if it is gone, or if the
        handle names something else.
        """
        fd = -1
        try:
            path, slots, slot_bytes = handle.rsplit(":", 2)
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            # The number of a descriptor is reused once its owner has closed it.
            if _NAME not in os.readlink(f"/proc/self/fd/{fd}"):
                raise ValueError("it is no arena any more")
            arena = cls(fd, int(slots), int(slot_bytes))
        except (OSError, ValueError, OverflowError) as error:
            if fd >= 0:
                os.close(fd)
            raise InvalidSettings(f"the arena {handle} cannot be mapped: {error}") from error
        # The pages are there, but each process faults them into its own tables.
        arena._start_populating()
        return arena

    @property
    def handle(self) -> str:
        """Names this arena to other processes while this process lives."""
        return f"/proc/{os.getpid()}/fd/{self._fd}:{self.slots}:{self.slot_bytes}"

    @property
    def free(self) -> int:
        """Slots that `allocate` could hand out now."""
        return len(self._released) + self.slots - self._fresh

    def allocate(self, count: int) -> list[Slot] | None:
        """`count` free slots, or None if there are fewer: all or nothing."""
        reused = min(count, len(self._released))
        fresh = count - reused
        if fresh > self.slots - self._fresh:
            return None
        taken = self._released[len(self._released) - reused :]
        del self._released[len(self._released) - reused :]
        if fresh:
            taken.extend(range(self._fresh, self._fresh + fresh))
            self._fresh += fresh
        return taken

    def release(self, slots: Sequence[Slot]) -> None:
        """Give slots back. The caller owned each of them."""
        self._released.extend(slots)

    def view(self, slot: Slot) -> npt.NDArray[np.uint8]:
        """The bytes of one slot: uint8 [slot_bytes], shared, not a copy."""
        view: npt.NDArray[np.uint8] = self.array[slot]
        return view

    def wait_populated(self, timeout_s: float | None = None) -> bool:
        """Block until population has ended; True if it has, and every page is backed by memory.

        Kernels before 5.14 cannot populate: there each page comes with its first use.
        """
        if self._populator is None:
            return True
        self._populator.join(timeout_s)
        return not self._populator.is_alive()

    def close(self) -> None:
        """Unmap and forget. Idempotent. Views that are still held keep the pages alive."""
        if self._fd < 0:
            return
        self._stop.set()
        if self._populator is not None:
            self._populator.join()
        fd, self._fd = self._fd, -1
        self.array = _Unmapped()  # type: ignore[assignment]
        mapping = self._map
        del self._map
        try:
            mapping.close()
        except BufferError:
            # Someone still holds a view (an I/O thread that never came back): the
            # mapping goes when that view goes.
            pass
        os.close(fd)

    def _start_populating(self) -> None:
        self._populator = threading.Thread(
            target=self._populate, name="kvtier-populate", daemon=True
        )
        self._populator.start()

    def _populate(self) -> None:
        total = self.slots * self.slot_bytes
        for start in range(0, total, _POPULATE_STEP_BYTES):
            if self._stop.is_set():
                return
            length = min(_POPULATE_STEP_BYTES, total - start)
            # Through ctypes, which releases the GIL; mmap.madvise holds it.
            _libc.madvise(self._address + start, length, _MADV_POPULATE_WRITE)


class _Unmapped:
    """Stands in for the array of a closed arena: any use says so."""

    def __getattr__(self, name: str) -> object:
        raise Closed("the arena is closed")

    def __getitem__(self, index: object) -> object:
        raise Closed("the arena is closed")
