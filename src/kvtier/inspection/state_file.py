"""The file in which a check saves its position for the next run: a local file or one of a store.

Invariant: a write replaces the file as a whole or leaves it as it was.
"""

import errno
import os
import stat
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from kvtier.tiers.shared.store import Store, TemporaryNames

BYTES_MAX: Final = 64 << 20
"""A longer file was not written by a check."""


class StateFile(Protocol):
    """A small file that is always replaced as a whole. Every method raises OSError."""

    where: str
    """Path or URL, for messages."""

    def read(self) -> bytes | None:
        """Return the content; None if the file does not exist."""
        ...

    def write(self, content: bytes) -> None:
        """Replace the content."""
        ...

    def remove(self) -> None:
        """Remove the file if it exists."""
        ...


class LocalStateFile:
    """A state file in a file system, with mode 0600. A link in its place is not followed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.where = str(path)

    def read(self) -> bytes | None:
        """Return the content; None if the file does not exist."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            return read_whole(os.open(self._path, flags), BYTES_MAX)
        except FileNotFoundError:
            return None

    def write(self, content: bytes) -> None:
        """Replace the content by renaming a temporary file."""
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
        """Remove the file if it exists."""
        self._path.unlink(missing_ok=True)


class StoreStateFile:
    """A state file in a store."""

    def __init__(self, store: Store, name: str, place: str) -> None:
        """Use the file `name` of `store`; `place` is the store's URL, for messages."""
        self._store = store
        self._name = name
        self.where = f"{place}/{name}"

    def read(self) -> bytes | None:
        """Return the content; None if the file does not exist."""
        return read_small(self._store, self._name, BYTES_MAX)

    def write(self, content: bytes) -> None:
        """Replace the content."""
        self._store.put(self._name, content)

    def remove(self) -> None:
        """Remove the file if it exists."""
        self._store.remove(self._name)


def read_whole(fd: int, limit_bytes: int) -> bytes:
    """Return the content of a regular file and close its descriptor.

    Raises OSError if it is not a regular file, or longer than `limit_bytes`.
    """
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
    """Return the content of a store's file; None if it does not exist.

    Raises OSError (EFBIG) if it is longer than `limit_bytes`.
    """
    stat = store.stat(name)
    if stat is None:
        return None
    if stat.size > limit_bytes:
        raise OSError(errno.EFBIG, f"longer than {limit_bytes} bytes")
    buffer = np.zeros(stat.size, np.uint8)
    read = store.read(name, 0, [buffer])
    return None if read is None else bytes(buffer[: read.filled_bytes])
