"""What the tiers that keep their blocks in a folder share: system calls, folders, open files.

The system calls go through the class SystemCalls, because a test overrides one method to make
that call fail (EIO, ENOSPC, ESTALE), do less than asked, or hang as a dead mount does. Each method
is a thin wrapper of one call, so that no logic can hide in it.

Invariant of OpenFile: a transfer ends only when all bytes are moved, the file ends, or the file
system refuses. A call that moved fewer bytes than asked is continued where it stopped. If the
kernel refuses O_DIRECT for some memory or position, the flag is cleared for this file and the call
is repeated.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec
import numpy as np

from kvtier.blocks.layout import ALIGNMENT
from kvtier.errors import InvalidSettings
from kvtier.tiers.base import Buffer

DirectIO = Literal["auto", "always", "never"]
"""Whether to bypass the page cache: where the file system can, or else refuse to start, or not."""

MANIFEST_NAME: Final = "manifest.json"

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Error numbers that say that there is no space left."""

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
    """A regular file or a folder inside a folder."""

    name: str
    is_folder: bool


class SystemCalls:
    """The operating system's file calls, one per method (`entries` makes a few).

    Every name is relative to an open folder. Every method may raise OSError.
    """

    # Before Python 3.12, type checkers do not accept arrays as buffers.

    def open(self, name: str, flags: int, folder_fd: int) -> int:
        """Open a file, or create it with mode 0600; return its descriptor.

        Symbolic links are not followed, and opening a FIFO does not wait for its other end.
        """
        always = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        return os.open(name, flags | always, 0o600, dir_fd=folder_fd)

    def close(self, fd: int) -> None:
        """Close a descriptor. Some network file systems report failed writes only here."""
        os.close(fd)

    def stat_open(self, fd: int) -> os.stat_result:
        """Return the status of an open file."""
        return os.fstat(fd)

    def stat(self, name: str, folder_fd: int) -> os.stat_result:
        """Return the status of a file; of a symbolic link, not of its target."""
        return os.stat(name, dir_fd=folder_fd, follow_symlinks=False)

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """Fill `buffers` from `offset`; return the bytes read, 0 at the end of the file."""
        return os.preadv(fd, buffers, offset)  # type: ignore[arg-type]  # see above

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """Write `buffers` at `offset`; return the bytes written."""
        return os.pwritev(fd, buffers, offset)  # type: ignore[arg-type]  # see above

    def read(self, fd: int, size: int) -> bytes:
        """Read at most `size` bytes from the current position; empty at the end of the file."""
        return os.read(fd, size)

    def write(self, fd: int, data: bytes) -> int:
        """Write at the current position; return the bytes written."""
        return os.write(fd, data)

    def allocate(self, fd: int, size: int) -> None:
        """Reserve space for the first `size` bytes and make the file at least that long.

        A file system that cannot reserve space only makes the file long.
        """
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            os.ftruncate(fd, size)

    def truncate(self, fd: int, size: int) -> None:
        """Cut an open file to `size` bytes."""
        os.ftruncate(fd, size)

    def use_page_cache(self, fd: int) -> None:
        """Switch O_DIRECT off for an open file."""
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT)

    def sync_data(self, fd: int) -> None:
        """Make the bytes and the length of a file durable; of a folder, its names."""
        os.fdatasync(fd)

    def sync(self, fd: int) -> None:
        """Make a file and all its metadata durable; of a folder, its names."""
        os.fsync(fd)

    def rename(self, old: str, new: str, folder_fd: int) -> None:
        """Rename `old` to `new` atomically, replacing a file of that name."""
        os.rename(old, new, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)

    def rename_exclusive(self, old: str, new: str, folder_fd: int) -> None:
        """Rename `old` to `new`; raise FileExistsError if `new` exists.

        Raises OSError with EINVAL or ENOSYS if the file system or the C library cannot do this.
        """
        if _renameat2 is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        names = os.fsencode(old), os.fsencode(new)
        if _renameat2(folder_fd, names[0], folder_fd, names[1], _RENAME_NOREPLACE) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), new)

    def link(self, old: str, new: str, folder_fd: int) -> None:
        """Give `old` a second name; raise FileExistsError if `new` exists."""
        os.link(old, new, src_dir_fd=folder_fd, dst_dir_fd=folder_fd, follow_symlinks=False)

    def unlink(self, name: str, folder_fd: int) -> None:
        """Remove a file."""
        os.unlink(name, dir_fd=folder_fd)

    def make_folder(self, name: str, folder_fd: int) -> None:
        """Create one folder with mode 0700."""
        os.mkdir(name, 0o700, dir_fd=folder_fd)

    def remove_folder(self, name: str, folder_fd: int) -> None:
        """Remove an empty folder."""
        os.rmdir(name, dir_fd=folder_fd)

    def entries(self, name: str, folder_fd: int) -> list[FolderEntry]:
        """List the regular files and folders in a folder, in no particular order."""
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
    """Return True for a regular file, False for a folder, link, FIFO, socket or device."""
    return stat.S_ISREG(result.st_mode)


def supports_direct_io(files: SystemCalls, folder_fd: int, temporary_name: str) -> bool:
    """Write a page with O_DIRECT, read it back, and return whether that worked.

    The file `temporary_name` is removed again. Raises OSError if the file system is full, which
    says nothing about O_DIRECT.
    """
    page = mmap.mmap(-1, 2 * ALIGNMENT)
    both = np.frombuffer(page, dtype=np.uint8)
    written, read = both[:ALIGNMENT], both[ALIGNMENT:]
    written[:] = np.arange(ALIGNMENT, dtype=np.uint32).astype(np.uint8)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_DIRECT
    try:
        fd = files.open(temporary_name, flags, folder_fd)
        try:
            files.pwritev(fd, [written], 0)
            files.preadv(fd, [read], 0)
        finally:
            files.close(fd)
    except OSError as error:
        if error.errno in FULL:
            raise
        return False
    finally:
        remove_if_possible(files, folder_fd, temporary_name)
    return bool(np.array_equal(written, read))


def remove_if_possible(files: SystemCalls, folder_fd: int, name: str) -> None:
    """Remove a file. Nothing happens if it is gone or cannot be removed."""
    try:
        files.unlink(name, folder_fd)
    except OSError:
        pass


def open_folder(setting: str, path: Path) -> int:
    """Create the folder (mode 0700) if it does not exist, and return a descriptor of it.

    The parent is not created: where a mount is missing, its mount point must not be filled instead.
    Raises InvalidSettings naming `setting` where there is no parent, where `path` is not a folder,
    and where this user may not open it.
    """
    try:
        if not path.exists():
            path.mkdir(mode=0o700, exist_ok=True)  # another host may create it meanwhile
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise InvalidSettings(
            f"{setting}: the parent folder of {path} does not exist; create {path.parent} "
            "or mount it"
        ) from error
    except (NotADirectoryError, FileExistsError) as error:  # a file, or a dangling link
        raise InvalidSettings(
            f"{setting}: {path} is not a folder; name a folder or remove the file"
        ) from error
    except OSError as error:
        raise unusable(setting, path, error) from error


def unusable(setting: str, path: Path, error: OSError) -> InvalidSettings:
    """Return the error to raise where the file system refuses what the tier needs to do."""
    if error.errno == errno.EROFS:
        return InvalidSettings(
            f"{setting}: {path} is on a read-only file system; mount it for reading and writing"
        )
    return InvalidSettings(
        f"{setting}: {path} cannot be used ({error.strerror}); "
        "name a folder that this user can read and write"
    )


class _Versioned(msgspec.Struct, frozen=True):
    format: int


def manifest_format(raw: bytes) -> int:
    """Return the format number of a JSON manifest. Raises InvalidSettings if it has none."""
    try:
        return msgspec.json.decode(raw, type=_Versioned).format
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidSettings(f"{MANIFEST_NAME} cannot be read: {error}") from error


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

    def __init__(self, files: SystemCalls, name: str, flags: int, folder_fd: int) -> None:
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
