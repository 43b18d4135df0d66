"""The size and use of a file system as `df` reports them, and the mounts below a folder.

Files on another file system do not belong to the store: removing them would not bring the store
below its bound.
"""

import os
import re
from pathlib import Path
from typing import Final, NamedTuple

from kvtier.clock import Clock

MOUNTS: Final = Path("/proc/self/mountinfo")
PENDING_S: Final = 60.0
"""Time for which removed files may keep their space."""

_MOUNT_POINT = 4
"""The column of the mount point in the table."""
_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")


class FileSystemUsage(NamedTuple):
    """The size and use of a file system, by all its files."""

    total_bytes: int
    """Used and available bytes together, as `df` counts them."""
    used_bytes: int
    total_inodes: int = 0
    """0 if the file system has no fixed number of inodes."""


def measure(path: Path) -> FileSystemUsage:
    """Measure the file system of `path` with one system call. Raises OSError."""
    found = os.statvfs(path)
    used_bytes = (found.f_blocks - found.f_bfree) * found.f_frsize
    return FileSystemUsage(used_bytes + found.f_bavail * found.f_frsize, used_bytes, found.f_files)


def mounts_below(folder: Path, table: Path = MOUNTS) -> list[str]:
    """Return the mount points below `folder`, relative to it.

    The list is empty on a system without the mount table `table`.
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
    """The space of removed files that is not free yet. Used by one thread.

    CephFS and Lustre free space a while after the last name is removed, and a file that a reader
    holds open keeps its space. Without this, `df` would show right after a pass that nothing was
    freed, and the next pass would remove as much again. Invariant: space that does not become
    free within PENDING_S counts as used.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pending_bytes = 0
        self._used_bytes = 0
        self._freed_s = 0.0

    def expected(self, used_bytes: int) -> int:
        """Return the use once all removed files are free; `used_bytes` is the current use."""
        self._update(used_bytes)
        return max(0, used_bytes - self._pending_bytes)

    def removed(self, freed_bytes: int, used_bytes: int) -> None:
        """Note that files of `freed_bytes` were removed; `used_bytes` is the current use."""
        if freed_bytes:
            self._freed_s = self._clock.now_s()
        self._pending_bytes += freed_bytes
        self._update(used_bytes)

    def _update(self, used_bytes: int) -> None:
        """Subtract the space that has become free since the last call."""
        became_free = max(0, self._used_bytes - used_bytes)
        self._pending_bytes = max(0, self._pending_bytes - became_free)
        if self._clock.now_s() - self._freed_s > PENDING_S:
            self._pending_bytes = 0
        self._used_bytes = used_bytes


def _unescape(point: bytes) -> bytes:
    """Decode blanks and backslashes, which the table writes as three octal digits."""
    return _OCTAL.sub(lambda found: bytes([int(found[1], 8)]), point)
