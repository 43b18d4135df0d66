"""The system calls of a shared folder, and an open file that uses them."""

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
    """A file or folder in a folder."""

    name: str
    is_folder: bool


class StoreFiles:
    """The real thing: each method is one call of `os`, `entries` a few."""

    # Arrays are buffers to the type checker from Python 3.12 on only.

    def open(self, name: str, flags: int, folder_fd: int) -> int:
        """Open, or create with mode 0600; returns a descriptor.

        Follows no link and waits for no other end of a FIFO.
        """
        always = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        return os.open(name, flags | always, 0o600, dir_fd=folder_fd)

    def close(self, fd: int) -> None:
        """Give a descriptor back. Some network file systems report failed writes here."""
        os.close(fd)

    def stat_open(self, fd: int) -> os.stat_result:
        """Of an open file."""
        return os.fstat(fd)

    def stat(self, name: str, folder_fd: int) -> os.stat_result:
        """Of a name; of a link, not of what it points to."""
        return os.stat(name, dir_fd=folder_fd, follow_symlinks=False)

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """Fill `buffers` from `offset`; returns bytes read, 0 at the end of the file."""
        return os.preadv(fd, buffers, offset)  # type: ignore[arg-type]  # see above

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """Write `buffers` at `offset`; returns bytes written."""
        return os.pwritev(fd, buffers, offset)  # type: ignore[arg-type]  # see above

    def use_page_cache(self, fd: int) -> None:
        """Take O_DIRECT off an open file."""
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT)

    def sync_data(self, fd: int) -> None:
        """Make the bytes and the length of a file durable."""
        os.fdatasync(fd)

    def sync(self, fd: int) -> None:
        """Make a file durable with all that is known of it; of a folder, its names."""
        os.fsync(fd)

    def rename(self, old: str, new: str, folder_fd: int) -> None:
        """Give `old` the name `new` at once, replacing what had it."""
        os.rename(old, new, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)

    def rename_exclusive(self, old: str, new: str, folder_fd: int) -> None:
        """The same, but FileExistsError where something has the name `new`.

        EINVAL or ENOSYS where the file system or the system library cannot do this.
        """
        if _renameat2 is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        names = os.fsencode(old), os.fsencode(new)
        if _renameat2(folder_fd, names[0], folder_fd, names[1], _RENAME_NOREPLACE) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), new)

    def link(self, old: str, new: str, folder_fd: int) -> None:
        """Give `old` a second name; FileExistsError where something has it."""
        os.link(old, new, src_dir_fd=folder_fd, dst_dir_fd=folder_fd, follow_symlinks=False)

    def unlink(self, name: str, folder_fd: int) -> None:
        """Remove a name that is not a folder's."""
        os.unlink(name, dir_fd=folder_fd)

    def make_folder(self, name: str, folder_fd: int) -> None:
        """Make one folder, mode 0700."""
        os.mkdir(name, 0o700, dir_fd=folder_fd)

    def remove_folder(self, name: str, folder_fd: int) -> None:
        """Remove an empty folder."""
        os.rmdir(name, dir_fd=folder_fd)

    def entries(self, name: str, folder_fd: int) -> list[FolderEntry]:
        """Regular files and folders in a folder, in no order; no links, FIFOs or devices."""
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
    """Whether it is a file, not a folder, link, FIFO, socket or device."""
    return stat.S_ISREG(result.st_mode)


_Call = Callable[[int, Sequence[Buffer], int], int]
_BUFFERS_A_CALL = 1024
"""The kernel takes no more at once (IOV_MAX)."""


def in_whole_pages(offset: int, buffers: Sequence[Buffer]) -> bool:
    """Whether O_DIRECT can move `buffers`, as far as lengths tell; the kernel knows the rest."""
    return offset % ALIGNMENT == 0 and not any(len(buffer) % ALIGNMENT for buffer in buffers)


class OpenFile:
    """An open file. Belongs to one call; `close` it. Every method raises OSError."""

    def __init__(self, files: StoreFiles, name: str, flags: int, folder_fd: int) -> None:
        """Open. O_DIRECT is dropped from `flags` where the file system refuses it."""
        self._files = files
        self._direct = bool(flags & os.O_DIRECT)
        try:
            self._fd = files.open(name, flags, folder_fd)
        except OSError as error:
            if error.errno != errno.EINVAL or not self._direct:
                raise
            self._direct = False
            # The file may have been made before the flag was refused.
            flags &= ~(os.O_DIRECT | os.O_EXCL)
            self._fd = files.open(name, flags, folder_fd)

    def stat(self) -> os.stat_result:
        """Of the file."""
        return self._files.stat_open(self._fd)

    def read(self, offset: int, buffers: Sequence[Buffer], wanted_bytes: int) -> int:
        """Fill the first `wanted_bytes` of `buffers`; returns less at the end of the file."""
        return self._move(self._files.preadv, offset, buffers, wanted_bytes)

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Write all `buffers` from the start of the file on."""
        wanted_bytes = sum(map(len, buffers))
        if self._move(self._files.pwritev, 0, buffers, wanted_bytes) < wanted_bytes:
            raise OSError(errno.ENOSPC, "nothing written")

    def sync_data(self) -> None:
        """Make bytes and length durable."""
        self._files.sync_data(self._fd)

    def sync(self) -> None:
        """Make all of it durable; of a folder, its names."""
        self._files.sync(self._fd)

    def close(self) -> None:
        """Close. An error here may be the first word of a failed write."""
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
    """What is left of `buffers` behind their first `moved` bytes, empty ones dropped."""
    for index, buffer in enumerate(buffers):
        if moved < len(buffer):
            return [buffer[moved:], *buffers[index + 1 :]]
        moved -= len(buffer)
    return []
