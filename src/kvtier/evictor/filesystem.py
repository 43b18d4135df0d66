"""How large a file system is and how full, as `df` says it, and what is mounted below a folder.

Why the latter: what lies on another file system is not this store's. To free it would not bring
this one below its bound, however much went.
"""

import os
import re
from pathlib import Path
from typing import Final, NamedTuple

from kvtier.clock import Clock

MOUNTS: Final = Path("/proc/self/mountinfo")
PENDING_S: Final = 60.0

_MOUNT_POINT = 4
"""Which column of the table."""
_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")


class FileSystemUsage(NamedTuple):
    """Bytes, by whomever used."""

    total_bytes: int
    """As `df` counts: what is used, and what is available to this user."""
    used_bytes: int
    total_inodes: int = 0
    """0 where it has no fixed number of them."""


def measure(path: Path) -> FileSystemUsage:
    """One system call. Raises OSError."""
    found = os.statvfs(path)
    used_bytes = (found.f_blocks - found.f_bfree) * found.f_frsize
    return FileSystemUsage(used_bytes + found.f_bavail * found.f_frsize, used_bytes, found.f_files)


def mounts_below(folder: Path, table: Path = MOUNTS) -> list[str]:
    """Where something else is mounted below `folder`: names relative to it. One small read.

    Empty where the system has no such table.
    """
    try:
        lines = table.read_bytes().splitlines()
    except OSError:
        return []
    start = os.fsencode(folder.resolve()).rstrip(b"/") + b"/"
    points = (_unescape(line.split()[_MOUNT_POINT]) for line in lines if line.strip())
    below = {os.fsdecode(point.removeprefix(start)) for point in points if point.startswith(start)}
    return sorted(below - {""})


class PendingSpace:
    """What was removed and is not free yet. One thread.

    Why: CephFS and Lustre give space back a while after the last name is gone, and a file that a
    reader holds open keeps its blocks. Asked again at once, `df` seems to say that nothing was
    freed, and the next pass would remove as much again. Invariant: what does not become free
    within RECLAIM_S is taken for used.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pending_bytes = 0
        self._used_bytes = 0
        self._freed_s = 0.0

    def expected(self, used_bytes: int) -> int:
        """What will be used once everything that was removed is free; `used_bytes` is now."""
        self._update(used_bytes)
        return max(0, used_bytes - self._pending_bytes)

    def removed(self, freed_bytes: int, used_bytes: int) -> None:
        """So much was removed since `expected`; `used_bytes` is now."""
        if freed_bytes:
            self._freed_s = self._clock.now_s()
        self._pending_bytes += freed_bytes
        self._update(used_bytes)

    def _update(self, used_bytes: int) -> None:
        """What became free since the last look is pending no more."""
        became_free = max(0, self._used_bytes - used_bytes)
        self._pending_bytes = max(0, self._pending_bytes - became_free)
        if self._clock.now_s() - self._freed_s > PENDING_S:
            self._pending_bytes = 0
        self._used_bytes = used_bytes


def _unescape(point: bytes) -> bytes:
    """Blanks and backslashes stand in the table as three octal digits."""
    return _OCTAL.sub(lambda found: bytes([int(found[1], 8)]), point)
