"""A store in a folder that many hosts mount: CephFS, Lustre, NFS, a ReadWriteMany volume.

A file is written under a temporary name in its final folder (a rename is atomic only within one
file system, and quotas and layouts are often set per folder), made as durable as the setting asks,
and closed (network file systems report failed writes there). Then it takes its name in one step
that fails if the name is taken. So a name shows all bytes or does not exist, and of two writers one
learns that it lost. A process that is killed in between leaves a temporary file, which no store
reads or lists; a sweep removes it (`PosixStore.temporaries`).

Whole pages (parts that are multiples of 4096 bytes long, at such an offset) bypass the page cache
where the file system allows it.

Invariant: no temporary file outlives the call that made it, whatever the file system answers,
unless the file system refuses to remove it as well.
"""

import errno
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from kvtier.clock import Clock, MonotonicClock
from kvtier.tiers.base import Buffer
from kvtier.tiers.files import (
    DirectIO,
    OpenFile,
    SystemCalls,
    in_whole_pages,
    is_regular,
    remove_if_possible,
)
from kvtier.tiers.shared.folder import (
    FileUsage,
    RootFolder,
    WalkCache,
    folders,
    occupied,
    open_root,
    stat_of,
    walk,
)
from kvtier.tiers.shared.store import (
    ListEntry,
    ListPage,
    Read,
    Stat,
    TemporaryNames,
    check_folder,
    check_name,
    check_temporary,
    folder_of,
    is_legal_part,
    is_temporary,
    join,
)

Durability = Literal["none", "fdatasync", "fsync"]

TRIES = 64
"""How often a folder is created again that a sweep removed before the file was in it."""
_IRREGULAR = frozenset({errno.ELOOP, errno.ENXIO, errno.ENODEV})
"""The errnos of opening a link, a socket or a device."""


class TemporaryFiles:
    """The writer of temporary files, as durable as the setting asks.

    Safe from any thread. Every method may raise OSError.
    """

    def __init__(self, files: SystemCalls, names: TemporaryNames, durability: Durability) -> None:
        self._files = files
        self._names = names
        self._durability = durability

    def write(self, root: RootFolder, folder: str, parts: Sequence[Buffer], flags: int) -> str:
        """Write `parts` to a new file in `folder` and return its name; creates the folder.

        `flags` is O_DIRECT or 0.
        """
        temporary, handle = self._create(root, folder, flags)
        try:
            try:
                handle.write(parts)
                if self._durability == "fdatasync":
                    handle.sync_data()
                elif self._durability == "fsync":
                    handle.sync()
            finally:
                handle.close()
        except BaseException:
            remove_if_possible(self._files, root.fd, temporary)
            raise
        return temporary

    def _create(self, root: RootFolder, folder: str, flags: int) -> tuple[str, OpenFile]:
        flags |= os.O_WRONLY | os.O_CREAT | os.O_EXCL
        for _ in range(TRIES):
            temporary = self._names.next(folder)
            try:
                return temporary, OpenFile(self._files, temporary, flags, root.fd)
            except FileNotFoundError:
                self.make_folder(root, folder)
            except OSError:
                # Some file systems create the file and then refuse.
                remove_if_possible(self._files, root.fd, temporary)
                raise
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), folder)

    def make_folder(self, root: RootFolder, folder: str) -> None:
        """Create a folder and its parents; the caller retries if a sweep removed one of them."""
        made = ""
        try:
            for part in folder.split("/"):
                above, made = made, join(made, part)
                try:
                    self._files.make_folder(made, root.fd)
                except FileExistsError:
                    continue
                self.sync_folder(root, above)
        except FileNotFoundError:
            return

    def sync_folder(self, root: RootFolder, folder: str) -> None:
        """Make the names in a folder durable if the setting asks for it."""
        if self._durability != "fsync":
            return
        handle = OpenFile(self._files, folder or ".", os.O_RDONLY | os.O_DIRECTORY, root.fd)
        try:
            handle.sync()
        finally:
            handle.close()


class PosixStore:
    """A `Store` in the folder `root`. Safe from any thread.

    Files are created with mode 0600, folders with 0700. `durability` says what is on the device
    when `publish` and `put` return: nothing ("none"), the bytes of the file ("fdatasync"), or its
    name as well ("fsync"). `direct`: "auto" uses O_DIRECT where it works, "always" refuses to start
    where it does not, "never" does not use it. Times are those that the file system sets. A call
    hangs for as long as the file system hangs.

    Raises InvalidSettings naming `shared.path` or `shared.direct_io`, with the fix. Costs about ten
    system calls to open, four to publish and four to read.
    """

    def __init__(
        self,
        root: Path,
        *,
        durability: Durability = "none",
        direct: DirectIO = "auto",
        files: SystemCalls | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._files = files or SystemCalls()
        names = TemporaryNames()
        opened = open_root(root, direct, self._files, names)
        self._root: RootFolder | None = opened.root
        self._direct = opened.direct
        self._renames = opened.renames
        self._temporaries = TemporaryFiles(self._files, names, durability)
        self._walks = WalkCache(clock or MonotonicClock())

    def publish(self, name: str, parts: Sequence[Buffer]) -> bool:
        """Create a file, as `Store.publish` does.

        With "fsync", raises OSError if the name could not be made durable, although the file exists
        then. That also holds for a name that another writer took: that writer may not have made it
        durable yet, and the caller counts the file as written.
        """
        folder = folder_of(check_name(name))
        root = self._use()
        flags = self._flags(0, parts)
        temporary = self._temporaries.write(root, folder, parts, flags)
        try:
            won = self._take(root, temporary, name)
        except BaseException:
            remove_if_possible(self._files, root.fd, temporary)
            raise
        if not won or not self._renames:
            remove_if_possible(self._files, root.fd, temporary)
        self._temporaries.sync_folder(root, folder)
        return won

    def put(self, name: str, data: bytes) -> Stat:
        """Create or replace a file, as durable as `publish` does."""
        folder = folder_of(check_name(name))
        root = self._use()
        part = np.frombuffer(data, np.uint8)
        temporary = self._temporaries.write(root, folder, [part], 0)
        try:
            result = self._files.stat(temporary, root.fd)
            self._files.rename(temporary, name, root.fd)
        except BaseException:
            remove_if_possible(self._files, root.fd, temporary)
            raise
        self._temporaries.sync_folder(root, folder)
        return stat_of(result)

    def read(self, name: str, offset: int, buffers: Sequence[Buffer]) -> Read | None:
        """Fill `buffers` from a file; OSError with EINVAL for anything else, such as a FIFO."""
        check_name(name)
        root = self._use()
        try:
            handle = OpenFile(self._files, name, self._flags(offset, buffers), root.fd)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno in _IRREGULAR:
                raise _irregular(name) from error
            raise
        try:
            result = handle.stat()
            if not is_regular(result):
                raise _irregular(name)
            wanted_bytes = min(sum(map(len, buffers)), result.st_size - offset)
            filled_bytes = handle.read(offset, buffers, wanted_bytes)
        except OSError as error:
            if error.errno == errno.ESTALE:  # another host removed the file while it was open
                return None
            raise
        finally:
            handle.close()
        return Read(stat_of(result), filled_bytes)

    def stat(self, name: str) -> Stat | None:
        """Return the `Stat` of a file; OSError with EINVAL as in `read`."""
        check_name(name)
        root = self._use()
        try:
            result = self._files.stat(name, root.fd)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not is_regular(result):
            raise _irregular(name)
        return stat_of(result)

    def remove(self, name: str) -> bool:
        """Remove whatever has the name, unless it is a folder."""
        return self._remove(check_name(name))

    def move(self, name: str, to: str) -> bool:
        """Rename a file; its version stays the same."""
        folder = folder_of(check_name(to))
        root = self._use()
        for _ in range(TRIES):
            if self.stat(name) is None:
                return False
            try:
                self._files.rename(name, to, root.fd)
            except FileNotFoundError:
                self._temporaries.make_folder(root, folder)
            else:
                return True
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), folder)

    def list(self, folder: str, after: str = "", limit: int = 1000) -> ListPage:
        """Return a page of files, without those of illegal names that other programs may make.

        Costs one system call a file and three a folder. A listing that is continued within
        RESUMABLE_S continues where it stopped. Later, the folders on the way to `after` are read
        again, but not their files.
        """
        check_folder(folder)
        if limit < 1:
            raise ValueError(f"a page must have at least one entry, not {limit}")
        root = self._use()
        found = self._walks.take(folder, after)
        if found is None:
            found = walk(self._files, root, folder, after, is_legal_part)
        entries = list(itertools.islice(found, limit))
        if len(entries) < limit:
            return ListPage(entries, None)
        after = entries[-1].name
        self._walks.keep(folder, after, found)
        return ListPage(entries, after)

    def close(self) -> None:
        """Close the store: running calls finish, later ones raise OSError with EBADF."""
        self._root = None
        self._walks.clear()

    def temporaries(self, folder: str = "") -> Iterator[ListEntry]:
        """Yield the temporary files below `folder`, for a sweep.

        Only the age tells a file that is being written from one that a dead process left:
        `modified_s` moves while a file is written.
        """
        check_folder(folder)
        return walk(self._files, self._use(), folder, "", is_temporary)

    def remove_temporary(self, name: str) -> bool:
        """Remove a temporary file; False where it does not exist any more.

        If its writer is alive, that writer's `publish` raises OSError and leaves nothing behind.
        """
        return self._remove(check_temporary(name))

    def occupied(self, folder: str = "", after: str = "") -> Iterator[FileUsage]:
        """Yield the usage of every file below `folder` after the name `after`, in name order.

        For a sweep: includes temporary files and illegal names.
        """
        check_folder(folder)
        return occupied(self._files, self._use(), folder, after)

    def folders(self, folder: str = "") -> Iterator[str]:
        """Yield the folders below `folder`, each one after the folders inside it; for a sweep."""
        check_folder(folder)
        return folders(self._files, self._use(), folder)

    def remove_folder(self, name: str) -> bool:
        """Remove a folder; False where it is gone or not empty. Writers create it again."""
        check_name(name)
        root = self._use()
        try:
            self._files.remove_folder(name, root.fd)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
        return True

    def _use(self) -> RootFolder:
        """Return the folder, which stays open as long as the caller keeps the reference."""
        root = self._root
        if root is None:
            raise OSError(errno.EBADF, "the store is closed")
        return root

    def _remove(self, name: str) -> bool:
        root = self._use()
        try:
            self._files.unlink(name, root.fd)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def _flags(self, offset: int, buffers: Sequence[Buffer]) -> int:
        return os.O_DIRECT if self._direct and in_whole_pages(offset, buffers) else 0

    def _take(self, root: RootFolder, temporary: str, name: str) -> bool:
        """Give a temporary file its final name; False where the name is taken."""
        take = self._files.rename_exclusive if self._renames else self._files.link
        try:
            take(temporary, name, root.fd)
        except FileExistsError:
            return False
        return True


def _irregular(name: str) -> OSError:
    return OSError(errno.EINVAL, "not a regular file", name)
