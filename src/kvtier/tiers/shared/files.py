"""The system calls of a shared folder, behind one seam.

Why a seam: a test must be able to make any single call fail (EIO, ENOSPC, ESTALE), do less than
asked, or hang as a dead mount does. It is one call thick, so that nothing else can hide in it.
Every name is relative to an open folder.
"""

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from kvtier.tiers.base import Buffer

_RENAME_NOREPLACE = 1
_libc = ctypes.CDLL(None, use_errno=True)
_renameat2 = getattr(_libc, "renameat2", None)
if _renameat2 is not None:
    _renameat2.argtypes = (
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_uint,
    )


class Entry(NamedTuple):
    """A file or folder in a folder."""

    name: str
    is_folder: bool


class StoreFiles(Protocol):
    """What a store asks of the operating system. Every method may raise OSError."""

    def open(self, name: str, flags: int, folder_fd: int) -> int:
        """Open, or create with mode 0600; returns a descriptor.

        Follows no link and waits for no other end of a FIFO.
        """
        ...

    def close(self, fd: int) -> None:
        """Give a descriptor back. Some network file systems report failed writes here."""
        ...

    def stat_open(self, fd: int) -> os.stat_result:
        """Of an open file."""
        ...

    def stat(self, name: str, folder_fd: int) -> os.stat_result:
        """Of a name; of a link, not of what it points to."""
        ...

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """Fill `buffers` from `offset`; returns bytes read, 0 at the end of the file."""
        ...

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """Write `buffers` at `offset`; returns bytes written."""
        ...

    def use_page_cache(self, fd: int) -> None:
        """Take O_DIRECT off an open file."""
        ...

    def sync_data(self, fd: int) -> None:
        """Make the bytes and the length of a file durable."""
        ...

    def sync(self, fd: int) -> None:
        """Make a file durable with all that is known of it; of a folder, its names."""
        ...

    def rename(self, old: str, new: str, folder_fd: int) -> None:
        """Give `old` the name `new` at once, replacing what had it."""
        ...

    def rename_exclusive(self, old: str, new: str, folder_fd: int) -> None:
        """The same, but FileExistsError where something has the name `new`.

        EINVAL or ENOSYS where the file system or the system library cannot do this.
        """
        ...

    def link(self, old: str, new: str, folder_fd: int) -> None:
        """Give `old` a second name; FileExistsError where something has it."""
        ...

    def unlink(self, name: str, folder_fd: int) -> None:
        """Remove a name that is not a folder's."""
        ...

    def make_folder(self, name: str, folder_fd: int) -> None:
        """Make one folder, mode 0700."""
        ...

    def remove_folder(self, name: str, folder_fd: int) -> None:
        """Remove an empty folder."""
        ...

    def entries(self, name: str, folder_fd: int) -> list[Entry]:
        """Regular files and folders in a folder, in no order; no links, FIFOs or devices."""
        ...


class OsStoreFiles:
    """The real thing: each method is one call of `os`, `entries` a few."""

    # Arrays are buffers to the type checker from Python 3.12 on only.

    def open(self, name: str, flags: int, folder_fd: int) -> int:
        """See StoreFiles."""
        always = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        return os.open(name, flags | always, 0o600, dir_fd=folder_fd)

    def close(self, fd: int) -> None:
        """See StoreFiles."""
        os.close(fd)

    def stat_open(self, fd: int) -> os.stat_result:
        """See StoreFiles."""
        return os.fstat(fd)

    def stat(self, name: str, folder_fd: int) -> os.stat_result:
        """See StoreFiles."""
        return os.stat(name, dir_fd=folder_fd, follow_symlinks=False)

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """See StoreFiles."""
        return os.preadv(fd, buffers, offset)  # type: ignore[arg-type]  # see above

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """See StoreFiles."""
        return os.pwritev(fd, buffers, offset)  # type: ignore[arg-type]  # see above

    def use_page_cache(self, fd: int) -> None:
        """See StoreFiles."""
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT)

    def sync_data(self, fd: int) -> None:
        """See StoreFiles."""
        os.fdatasync(fd)

    def sync(self, fd: int) -> None:
        """See StoreFiles."""
        os.fsync(fd)

    def rename(self, old: str, new: str, folder_fd: int) -> None:
        """See StoreFiles."""
        os.rename(old, new, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)

    def rename_exclusive(self, old: str, new: str, folder_fd: int) -> None:
        """See StoreFiles."""
        if _renameat2 is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        names = os.fsencode(old), os.fsencode(new)
        if _renameat2(folder_fd, names[0], folder_fd, names[1], _RENAME_NOREPLACE) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), new)

    def link(self, old: str, new: str, folder_fd: int) -> None:
        """See StoreFiles."""
        os.link(old, new, src_dir_fd=folder_fd, dst_dir_fd=folder_fd, follow_symlinks=False)

    def unlink(self, name: str, folder_fd: int) -> None:
        """See StoreFiles."""
        os.unlink(name, dir_fd=folder_fd)

    def make_folder(self, name: str, folder_fd: int) -> None:
        """See StoreFiles."""
        os.mkdir(name, 0o700, dir_fd=folder_fd)

    def remove_folder(self, name: str, folder_fd: int) -> None:
        """See StoreFiles."""
        os.rmdir(name, dir_fd=folder_fd)

    def entries(self, name: str, folder_fd: int) -> list[Entry]:
        """See StoreFiles."""
        fd = self.open(name, os.O_RDONLY | os.O_DIRECTORY, folder_fd)
        try:
            with os.scandir(fd) as found:
                return [
                    Entry(entry.name, entry.is_dir(follow_symlinks=False))
                    for entry in found
                    if entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False)
                ]
        finally:
            os.close(fd)


def is_regular(result: os.stat_result) -> bool:
    """Whether it is a file, not a folder, link, FIFO, socket or device."""
    return stat.S_ISREG(result.st_mode)
