"""Somebody's store, opened for looking: nothing is made, written, moved or removed here.

Why not a store: that one tries out what the folder can do, and shows neither links and pipes
nor files of strangers. A person who looks into a folder wants to see just those, and may have
mounted it read-only.

Invariants: no link is followed but the one that `path` may be, and no pipe is waited for; a
walk is in the order of whole names, so that it can go on behind any name it gave.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from kvtier.errors import InvalidSettings
from kvtier.tiers.shared.files import OsStoreFiles, StoreFiles
from kvtier.tiers.shared.handle import Handle
from kvtier.tiers.shared.names import join

_GONE = (FileNotFoundError, NotADirectoryError)


def printable(name: str) -> str:
    """`name` with nothing in it that moves a cursor or that JSON cannot hold."""
    if name.isprintable():
        return name
    escaped = (
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in name
    )
    return "".join(escaped)


class Entry(NamedTuple):
    """Something in a folder. `name` is whole, below the root."""

    name: str
    status: os.stat_result

    @property
    def is_folder(self) -> bool:
        """A folder itself, not a link to one."""
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def is_file(self) -> bool:
        """A regular file."""
        return stat.S_ISREG(self.status.st_mode)

    @property
    def what(self) -> str:
        """In words."""
        kinds = {
            stat.S_IFDIR: "folder",
            stat.S_IFREG: "file",
            stat.S_IFLNK: "link",
            stat.S_IFIFO: "pipe",
            stat.S_IFSOCK: "socket",
        }
        return kinds.get(stat.S_IFMT(self.status.st_mode), "device")

    @property
    def position(self) -> str:
        """Where it stands in a walk: what is in a folder comes where the folder does."""
        return f"{self.name}/" if self.is_folder else self.name


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


class FileSystem(msgspec.Struct, frozen=True, kw_only=True):
    """What a folder is on. What may be used by those who are not root is free."""

    total_bytes: int
    free_bytes: int
    total_inodes: int
    free_inodes: int


class Folder:
    """An open folder. Safe from any thread; methods block. Close it."""

    def __init__(self, path: Path, files: StoreFiles | None = None) -> None:
        """Raises InvalidSettings with the fix where `path` is no folder that can be read."""
        self.path = path
        self._files = files or OsStoreFiles()
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise InvalidSettings(
                f"{path} does not exist; name the folder that shared.path names, and mount it"
            ) from error
        except NotADirectoryError as error:
            raise InvalidSettings(
                f"{path} is not a folder; name the folder that shared.path names"
            ) from error
        except OSError as error:
            raise InvalidSettings(
                f"{path} cannot be read ({error.strerror}); run this as a user who may read it"
            ) from error

    def entries(self, folder: str = "") -> list[Entry]:
        """What is in `folder`, in the order of a walk. Raises OSError; what vanishes is left out.

        Costs one call a file and two a folder.
        """
        flags = os.O_RDONLY | os.O_DIRECTORY
        fd = self._files.open(folder or ".", flags, self._fd)
        found = []
        try:
            with os.scandir(fd) as listing:
                for each in listing:
                    try:
                        status = each.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    found.append(Entry(join(folder, each.name), status))
        finally:
            os.close(fd)
        found.sort(key=lambda entry: entry.position)
        return found

    def walk(
        self,
        folder: str,
        looks_into: Callable[[str], bool],
        refused: Callable[[str, OSError], None],
        after: str = "",
    ) -> Iterator[Entry]:
        """Everything below `folder` whose `position` is behind `after`, in that order.

        A folder that `looks_into` is asked about is either looked into or given itself. One
        that cannot be listed is told to `refused`. One folder at a time is in memory.
        """
        try:
            entries = self.entries(folder)
        except _GONE:
            return
        except OSError as error:
            refused(folder or ".", error)
            return
        for entry in entries:
            if entry.is_folder and looks_into(entry.name):
                if entry.position > after or after.startswith(entry.position):
                    yield from self.walk(entry.name, looks_into, refused, after)
            elif entry.position > after:
                yield entry

    def open(self, name: str) -> Handle:
        """A file to read, past the page cache where that works. Raises OSError; close it.

        Past the cache, because a check must see the medium, and must not push an engine's data
        out of the cache.
        """
        return Handle(self._files, name, os.O_RDONLY | os.O_DIRECT, self._fd)

    def read(self, name: str, limit_bytes: int) -> bytes | None:
        """A small file; None where there is none. OSError with EFBIG where it is longer."""
        try:
            fd = self._files.open(name, os.O_RDONLY, self._fd)
        except _GONE:
            return None
        return read_whole(fd, limit_bytes)

    def file_system(self) -> FileSystem:
        """How much room there is. Raises OSError."""
        found = os.fstatvfs(self._fd)
        return FileSystem(
            total_bytes=found.f_blocks * found.f_frsize,
            free_bytes=found.f_bavail * found.f_frsize,
            total_inodes=found.f_files,
            free_inodes=found.f_favail,
        )

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
