"""The system calls of a shared folder, and open files that move whole batches of buffers.

`StoreFiles` is the seam for tests: a subclass can make any single call fail (EIO, ENOSPC, ESTALE),
do less than it was asked to, or hang as a dead mount does. It is one call thick, so that no logic
can hide in it.

Invariant of `OpenFile`: a transfer ends only when all bytes are moved, the file ends, or the file
system refuses. A call that moved fewer bytes than asked is continued where it stopped. Where the
kernel refuses O_DIRECT for some memory or position, the flag is cleared for this file and the call
is repeated.
"""

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Sequence
from typing import NamedTuple

from kvtier.blocks.layout import ALIGNMENT
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


class FolderEntry(NamedTuple):
    """The name of a file or folder inside a folder."""

    name: str
    is_folder: bool


class StoreFiles:
    """What a store asks of the operating system, one call of `os` a method (`entries`: a few).

    Every name is relative to an open folder. Every method may raise OSError.
    """

    # To the type checker, NumPy arrays are buffers only from Python 3.12 on.

    def open(self, name: str, flags: int, folder_fd: int) -> int:
        """Open a file, or create it with mode 0600, and return its descriptor.

        Follows no link, and does not wait for the other end of a FIFO.
        """
        always = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        return os.open(name, flags | always, 0o600, dir_fd=folder_fd)

    def close(self, fd: int) -> None:
        """Close a descriptor. Some network file systems report failed writes here."""
        os.close(fd)

    def stat_open(self, fd: int) -> os.stat_result:
        """Return the status of an open file."""
        return os.fstat(fd)

    def stat(self, name: str, folder_fd: int) -> os.stat_result:
        """Return the status of a name; for a link, of the link itself."""
        return os.stat(name, dir_fd=folder_fd, follow_symlinks=False)

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """Fill `buffers` from `offset`; return the bytes read, 0 at the end of the file."""
        return os.preadv(fd, buffers, offset)  # type: ignore[arg-type]  # see above

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """Write `buffers` at `offset`; return the bytes written."""
        return os.pwritev(fd, buffers, offset)  # type: ignore[arg-type]  # see above

    def use_page_cache(self, fd: int) -> None:
        """Clear O_DIRECT of an open file."""
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT)

    def sync_data(self, fd: int) -> None:
        """Make the bytes and the length of a file durable."""
        os.fdatasync(fd)

    def sync(self, fd: int) -> None:
        """Make a file durable, metadata included; for a folder, the names in it."""
        os.fsync(fd)

    def rename(self, old: str, new: str, folder_fd: int) -> None:
        """Rename `old` to `new` atomically, replacing any file of that name."""
        os.rename(old, new, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)

    def rename_exclusive(self, old: str, new: str, folder_fd: int) -> None:
        """Rename `old` to `new` atomically; FileExistsError if `new` exists.

        EINVAL or ENOSYS where the file system or the C library does not support this.
        """
        if _renameat2 is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        names = os.fsencode(old), os.fsencode(new)
        if _renameat2(folder_fd, names[0], folder_fd, names[1], _RENAME_NOREPLACE) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), new)

    def link(self, old: str, new: str, folder_fd: int) -> None:
        """Create the hard link `new` to `old`; FileExistsError if `new` exists."""
        os.link(old, new, src_dir_fd=folder_fd, dst_dir_fd=folder_fd, follow_symlinks=False)

    def unlink(self, name: str, folder_fd: int) -> None:
        """Remove the name of anything but a folder."""
        os.unlink(name, dir_fd=folder_fd)

    def make_folder(self, name: str, folder_fd: int) -> None:
        """Create one folder with mode 0700."""
        os.mkdir(name, 0o700, dir_fd=folder_fd)

    def remove_folder(self, name: str, folder_fd: int) -> None:
        """Remove an empty folder."""
        os.rmdir(name, dir_fd=folder_fd)

    def entries(self, name: str, folder_fd: int) -> list[FolderEntry]:
        """Return the regular files and folders in a folder, in no order.

        Links, FIFOs and devices are left out.
        """
        fd = self.open(name, os.O_RDONLY | os.O_DIRECTORY, folder_fd)
        try:
            with os.scandir(fd) as found:
                return [
                    FolderEntry(entry.name, entry.is_dir(follow_symlinks=False))
                    for entry in found
                    if entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False)
                ]
        finally:
            os.close(fd)


def is_regular(result: os.stat_result) -> bool:
    """Return whether this is a file: not a folder, link, FIFO, socket or device."""
    return stat.S_ISREG(result.st_mode)


_Call = Callable[[int, Sequence[Buffer], int], int]
_BUFFERS_A_CALL = 1024
"""The most buffers that the kernel takes in one call (IOV_MAX)."""


def in_whole_pages(offset: int, buffers: Sequence[Buffer]) -> bool:
    """Return whether `offset` and all lengths suit O_DIRECT; the kernel may refuse it even then."""
    return offset % ALIGNMENT == 0 and not any(len(buffer) % ALIGNMENT for buffer in buffers)


class OpenFile:
    """An open file, used by one call of the store, which closes it.

    Every method may raise OSError.
    """

    def __init__(self, files: StoreFiles, name: str, flags: int, folder_fd: int) -> None:
        """Open the file, without the O_DIRECT of `flags` where the file system refuses it."""
        self._files = files
        self._direct = bool(flags & os.O_DIRECT)
        try:
            self._fd = files.open(name, flags, folder_fd)
        except OSError as error:
            if error.errno != errno.EINVAL or not self._direct:
                raise
            self._direct = False
            # The file may have been created before the flag was refused.
            flags &= ~(os.O_DIRECT | os.O_EXCL)
            self._fd = files.open(name, flags, folder_fd)

    def stat(self) -> os.stat_result:
        """Return the status of the file."""
        return self._files.stat_open(self._fd)

    def read(self, offset: int, buffers: Sequence[Buffer], wanted_bytes: int) -> int:
        """Fill the first `wanted_bytes` of `buffers`; return the bytes read, fewer at the end."""
        return self._move(self._files.preadv, offset, buffers, wanted_bytes)

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Write all `buffers` in order, from the start of the file."""
        wanted_bytes = sum(map(len, buffers))
        if self._move(self._files.pwritev, 0, buffers, wanted_bytes) < wanted_bytes:
            raise OSError(errno.ENOSPC, "nothing written")

    def sync_data(self) -> None:
        """Make the bytes and the length of the file durable."""
        self._files.sync_data(self._fd)

    def sync(self) -> None:
        """Make the file durable, metadata included; for a folder, the names in it."""
        self._files.sync(self._fd)

    def close(self) -> None:
        """Close the file. An error here may be the first report of a failed write."""
        self._files.close(self._fd)

    def _move(self, call: _Call, offset: int, buffers: Sequence[Buffer], wanted_bytes: int) -> int:
        moved = 0
        left = buffers
        while moved < wanted_bytes:
            try:
                step = call(self._fd, left[:_BUFFERS_A_CALL], offset + moved)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._direct:
                    raise
                self._direct = False
                self._files.use_page_cache(self._fd)
                continue
            if step == 0:
                break
            moved += step
            if moved < wanted_bytes:
                left = _after(left, step)
        return moved


def _after(buffers: Sequence[Buffer], moved: int) -> Sequence[Buffer]:
    """Return what is left of `buffers` after their first `moved` bytes."""
    for index, buffer in enumerate(buffers):
        if moved < len(buffer):
            return [buffer[moved:], *buffers[index + 1 :]]
        moved -= len(buffer)
    return []
