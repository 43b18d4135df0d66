"""The view of a folder, including links, pipes and names that a store cannot have.

Invariants: nothing is created, written, moved or removed. No link is followed, except `path`
itself, and no pipe is waited for.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kvtier.errors import InvalidSettings
from kvtier.inspection.spaces import CURSOR_NAME
from kvtier.inspection.state_file import LocalStateFile, read_whole
from kvtier.inspection.view import Capacity, Entry, NotRegularFile, is_unreachable
from kvtier.tiers.base import Buffer
from kvtier.tiers.files import OpenFile, SystemCalls, is_regular
from kvtier.tiers.shared.folder import stat_of
from kvtier.tiers.shared.posix import PosixStore
from kvtier.tiers.shared.store import Read, Stat, Store, join

_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE})
"""Errors that mean that the file is gone; ESTALE: another host removed it while it was open."""


_IRREGULAR = frozenset({errno.ELOOP, errno.ENXIO, errno.ENODEV})
"""Errors of opening a link, a socket or a device."""


_KINDS = {
    stat.S_IFDIR: "folder",
    stat.S_IFREG: "file",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
}


_BLOCK_BYTES = 512
"""Unit of `st_blocks`, independent of the file system's block size."""


class FolderView:
    """A `View` of a folder."""

    def __init__(self, path: Path, files: SystemCalls | None = None) -> None:
        """Open `path`. Raises InvalidSettings if it is not a readable folder."""
        self.path = path
        self.place = str(path)
        self._files = files or SystemCalls()
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise InvalidSettings(
                f"shared.path: {path} does not exist; name the folder that engines share, and "
                "check that it is mounted"
            ) from error
        except NotADirectoryError as error:
            raise InvalidSettings(
                f"shared.path: {path} is not a folder; name the folder that engines share"
            ) from error
        except OSError as error:
            raise InvalidSettings(
                f"shared.path: {path} cannot be read ({error.strerror}); run this as a user who "
                "may read it"
            ) from error

    @property
    def identity(self) -> str:
        """Device and inode of the folder, the same wherever it is mounted."""
        status = os.fstat(self._fd)
        return f"{status.st_dev:x}:{status.st_ino:x}"

    def entries(self, folder: str = "") -> Iterator[Entry]:
        """Yield the entries of `folder`; costs one call per file and two per folder."""
        fd = self._files.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY, self._fd)
        found = []
        try:
            with os.scandir(fd) as listing:
                for each in listing:
                    try:
                        status = each.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    found.append(_entry(join(folder, each.name), status))
        finally:
            os.close(fd)
        found.sort(key=lambda entry: entry.position)
        return iter(found)

    def walk(
        self,
        folder: str,
        looks_into: Callable[[str], bool],
        on_unreadable: Callable[[str, OSError], None],
        after: str = "",
    ) -> Iterator[Entry]:
        """Walk as `View.walk` says; a folder that is removed meanwhile counts as empty."""
        try:
            entries = self.entries(folder)
        except OSError as error:
            if is_unreachable(error):
                raise
            if error.errno not in _GONE:
                on_unreadable(folder or ".", error)
            return
        for entry in entries:
            if entry.is_folder and looks_into(entry.name):
                if entry.position > after or after.startswith(entry.position):
                    yield from self.walk(entry.name, looks_into, on_unreadable, after)
            elif entry.position > after:
                yield entry

    def stat(self, name: str) -> Stat | None:
        """Return the Stat of a file; None if it does not exist. Raises NotRegularFile."""
        try:
            result = self._files.stat(name, self._fd)
        except OSError as error:
            _check_gone(name, error)
            return None
        if not is_regular(result):
            raise NotRegularFile(name)
        return stat_of(result)

    def read(self, name: str, limit_bytes: int) -> bytes | None:
        """Return the content of a small file; None if it does not exist."""
        try:
            fd = self._files.open(name, os.O_RDONLY, self._fd)
        except OSError as error:
            _check_gone(name, error)
            return None
        return read_whole(fd, limit_bytes)

    def read_into(self, name: str, offset: int, buffers: Sequence[Buffer]) -> Read | None:
        """Fill `buffers` as `View.read_into` says, with O_DIRECT where that works.

        A check has to see the medium instead of the page cache, and must not evict the engine's
        data from the cache.
        """
        try:
            handle = OpenFile(self._files, name, os.O_RDONLY | os.O_DIRECT, self._fd)
        except OSError as error:
            _check_gone(name, error)
            return None
        try:
            return _read(handle, name, offset, buffers)
        except OSError as error:
            _check_gone(name, error)
            return None
        finally:
            try:
                handle.close()
            except OSError:  # the data is complete at this point
                pass

    def file_system(self) -> Capacity:
        """Return the size and free space of the folder's file system."""
        found = os.fstatvfs(self._fd)
        return Capacity(
            total_bytes=found.f_blocks * found.f_frsize,
            free_bytes=found.f_bavail * found.f_frsize,
            total_inodes=found.f_files,
            free_inodes=found.f_favail,
        )

    def state_file(self) -> LocalStateFile:
        """Return a file in the folder with a name that stores do not list."""
        return LocalStateFile(self.path / CURSOR_NAME)

    def open_store(self) -> Store:
        """Open the folder for writing. Raises InvalidSettings if that is not possible."""
        try:
            return PosixStore(self.path)
        except InvalidSettings as error:
            raise InvalidSettings(str(error).replace("shared.path", "--repair")) from error

    def close(self) -> None:
        """Close the folder; further calls do nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _entry(name: str, status: os.stat_result) -> Entry:
    what = _KINDS.get(stat.S_IFMT(status.st_mode), "device")
    return Entry(name, what, stat_of(status), status.st_blocks * _BLOCK_BYTES)


def _check_gone(name: str, error: OSError) -> None:
    """Raise NotRegularFile for anything but a file, and `error` unless the file is gone."""
    if error.errno in _GONE:
        return
    if error.errno in _IRREGULAR:
        raise NotRegularFile(name) from error
    raise error


def _read(handle: OpenFile, name: str, offset: int, buffers: Sequence[Buffer]) -> Read:
    result = handle.stat()
    if not is_regular(result):
        raise NotRegularFile(name)
    wanted_bytes = min(sum(map(len, buffers)), result.st_size - offset)
    return Read(stat_of(result), handle.read(offset, buffers, wanted_bytes))
