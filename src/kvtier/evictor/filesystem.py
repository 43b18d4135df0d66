"""How large a file system is and how full, as `df` says it."""

import os
from pathlib import Path
from typing import NamedTuple


class FileSystem(NamedTuple):
    """Bytes, by whomever used."""

    total_bytes: int
    """As `df` counts: what is used, and what is available to this user."""
    used_bytes: int


def measure(path: Path) -> FileSystem:
    """One system call. Raises OSError."""
    found = os.statvfs(path)
    used_bytes = (found.f_blocks - found.f_bfree) * found.f_frsize
    return FileSystem(used_bytes + found.f_bavail * found.f_frsize, used_bytes)
