"""The RAM tier's memory: one shared mapping of fixed-size slots.

The scheduler decides which slot holds a block, the workers copy to and from the slots, and the
tiers read and write them in place, so all of them must map the same pages. The mapping is an
anonymous memory file: it has no name in the file system and disappears with its last process,
so a killed engine leaves nothing behind in /dev/shm.

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
from kvtier.memory.free_slots import FreeSlots

_NAME = "kvtier-arena"
_MADV_HUGEPAGE = 14
_MADV_POPULATE_WRITE = 23
_POPULATE_STEP_BYTES = 64 * 1024 * 1024
_HUGE_PAGE_BYTES = 2 * 1024 * 1024

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

Slot = int
"""The number of a slot, 0 <= slot < Arena.slots."""


class Arena:
    """Fixed-size slots in one shared, page-aligned mapping.

    Only the cache's thread may call `allocate` and `release`; any thread may use `array` and
    `view`. Only `wait_populated` and `close` block.
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
        # Slots are first handed out in rising order, as population proceeds, so that it stays
        # ahead. Released slots are reused first, while they are still in the processor's cache.
        self._free = FreeSlots(slots)
        self._stop = threading.Event()
        self._populator: threading.Thread | None = None

    @classmethod
    def create(cls, slots: int, slot_bytes: int) -> "Arena":
        """Create an arena of `slots` x `slot_bytes` and populate its pages in the background.

        Returns after microseconds. Raises InvalidSettings if an arena cannot have these sizes.
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
        """Map another process's arena by its `handle`; that process keeps allocating.

        Both processes must run as the same user on the same host. Raises InvalidSettings if the
        arena is gone, or if the handle names something else.
        """
        fd = -1
        try:
            path, slots, slot_bytes = handle.rsplit(":", 2)
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            # The owner may have closed the arena, and its descriptor's number may be in use for
            # another file.
            if _NAME not in os.readlink(f"/proc/self/fd/{fd}"):
                raise ValueError("it is not an arena any more")
            arena = cls(fd, int(slots), int(slot_bytes))
        except (OSError, ValueError, OverflowError) as error:
            if fd >= 0:
                os.close(fd)
            raise InvalidSettings(f"the arena {handle} cannot be mapped: {error}") from error
        # The pages exist already, but this process has no page-table entries for them yet.
        arena._start_populating()
        return arena

    @property
    def handle(self) -> str:
        """A string by which other processes can `attach` the arena while this process lives."""
        return f"/proc/{os.getpid()}/fd/{self._fd}:{self.slots}:{self.slot_bytes}"

    @property
    def free(self) -> int:
        """The number of slots that `allocate` could hand out now."""
        return len(self._free)

    def allocate(self, count: int) -> list[Slot] | None:
        """Take `count` free slots; return None, and take none, if there are fewer."""
        return self._free.take_all(count)

    def release(self, slots: Sequence[Slot]) -> None:
        """Give slots back. The caller owns each of them."""
        self._free.release(slots)

    def view(self, slot: Slot) -> npt.NDArray[np.uint8]:
        """Return the bytes of one slot, uint8 [slot_bytes], as a view, not a copy."""
        view: npt.NDArray[np.uint8] = self.array[slot]
        return view

    def wait_populated(self, timeout_s: float | None = None) -> bool:
        """Wait until the pages are populated; return False if that takes longer than the timeout.

        Kernels before 5.14 cannot populate: they allocate each page at its first use.
        """
        if self._populator is None:
            return True
        self._populator.join(timeout_s)
        return not self._populator.is_alive()

    def close(self) -> None:
        """Unmap the slots. Views that are still held keep the pages alive. Idempotent."""
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
            # A view is still held, for example by an I/O thread in a call that never returned.
            # The mapping disappears with that view.
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
            # Called through ctypes, which releases the GIL; mmap.madvise holds it.
            _libc.madvise(self._address + start, length, _MADV_POPULATE_WRITE)


class _Unmapped:
    """The array of a closed arena: every use raises Closed."""

    def __getattr__(self, name: str) -> object:
        raise Closed("the arena is closed")

    def __getitem__(self, index: object) -> object:
        raise Closed("the arena is closed")
