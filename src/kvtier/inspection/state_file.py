"""A few bytes that a check leaves for its next run: in a file, or in a store.

Invariant: what is there is replaced whole, or stays.
"""

import errno
import os
import stat
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from kvtier.tiers.shared.store import Store, TemporaryNames

BYTES_MAX: Final = 64 << 20
"""A note that is longer is none."""


class StateFile(Protocol):
    """One note. Every method raises OSError."""

    where: str
    """For people."""

    def read(self) -> bytes | None:
        """What was noted; None where nothing is."""
        ...

    def write(self, content: bytes) -> None:
        """Replace it."""
        ...

    def remove(self) -> None:
        """It may be gone already."""
        ...


class LocalStateFile:
    """In a file of its own; mode 0600, and no link is followed to it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.where = str(path)

    def read(self) -> bytes | None:
        """See StateFile."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            return read_whole(os.open(self._path, flags), BYTES_MAX)
        except FileNotFoundError:
            return None

    def write(self, content: bytes) -> None:
        """See StateFile."""
        temporary = self._path.with_name(TemporaryNames().next(""))
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb") as file:
                file.write(content)
            os.replace(temporary, self._path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def remove(self) -> None:
        """See StateFile."""
        self._path.unlink(missing_ok=True)


class StoreStateFile:
    """A file of a store."""

    def __init__(self, store: Store, name: str, place: str) -> None:
        """`place`: of the store, for people."""
        self._store = store
        self._name = name
        self.where = f"{place}/{name}"

    def read(self) -> bytes | None:
        """See StateFile."""
        return read_small(self._store, self._name, BYTES_MAX)

    def write(self, content: bytes) -> None:
        """See StateFile."""
        self._store.put(self._name, content)

    def remove(self) -> None:
        """See StateFile."""
        self._store.remove(self._name)


def read_whole(fd: int, limit_bytes: int) -> bytes:
    """A regular file from its descriptor, which is closed. OSError where it is none or longer."""
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        with open(fd, "rb", closefd=False) as file:
            content = file.read(limit_bytes + 1)
    finally:
        os.close(fd)
    if len(content) > limit_bytes:
        raise OSError(errno.EFBIG, f"longer than {limit_bytes} bytes")
    return content


def read_small(store: Store, name: str, limit_bytes: int) -> bytes | None:
    """All of a store's file; None where there is none. EFBIG where it is longer."""
    stat = store.stat(name)
    if stat is None:
        return None
    if stat.size > limit_bytes:
        raise OSError(errno.EFBIG, f"longer than {limit_bytes} bytes")
    buffer = np.zeros(stat.size, np.uint8)
    read = store.read(name, 0, [buffer])
    return None if read is None else bytes(buffer[: read.filled_bytes])
