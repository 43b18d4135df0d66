"""A store in a folder that many hosts mount."""

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
"""Times a folder is made anew where a sweep keeps removing it, empty, before the file is in it."""


class TemporaryFiles:
    """Makes them, as durable as the setting asks. Any thread. Every method raises OSError."""

    def __init__(self, files: SystemCalls, names: TemporaryNames, durability: Durability) -> None:
        self._files = files
        self._names = names
        self._durability = durability

    def write(self, root: RootFolder, folder: str, parts: Sequence[Buffer], flags: int) -> str:
        """Name of a new file in `folder` with the bytes of `parts`; makes the folder.

        `flags`: O_DIRECT or 0.
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
                remove_if_possible(
                    self._files, root.fd, temporary
                )  # some refuse what they have made
                raise
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), folder)

    def make_folder(self, root: RootFolder, folder: str) -> None:
        """Make a folder and those above it; the caller tries again if a sweep takes one away."""
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
        """Make its names durable, where the setting asks for that."""
        if self._durability != "fsync":
            return
        handle = OpenFile(self._files, folder or ".", os.O_RDONLY | os.O_DIRECTORY, root.fd)
        try:
            handle.sync()
        finally:
            handle.close()


_IRREGULAR = frozenset({errno.ELOOP, errno.ENXIO, errno.ENODEV})
"""What opening a link, a socket or a device answers."""


class PosixStore:
    """A `Store` in the folder `root`. Safe from any thread; see `Store`.

    Files are made with mode 0600 and folders with 0700. `durability`: nothing, the bytes of a
    file, or also its name are on the device before `publish` and `put` return. `direct`:
    O_DIRECT where it works; `always` refuses to start where it does not; `never` does not try.
    Times are those that the file system stamps. A file system that hangs makes a call hang.

    Raises InvalidSettings naming `shared.path` or `shared.direct_io` and the fix.
    Costs about ten system calls to open, four to publish, four to read.
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
        """See Store. With `fsync`, a name that could not be made durable raises and is there.

        So does a name that another took: its writer may be on the way to make it durable, and
        whoever is told that the name is taken counts what has it as written.
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
        """See Store. As durable as what is published."""
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
        """See Store. OSError with EINVAL where the name is no file's but, say, a FIFO's."""
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
            if error.errno == errno.ESTALE:  # removed by another host while it was open here
                return None
            raise
        finally:
            handle.close()
        return Read(stat_of(result), filled_bytes)

    def stat(self, name: str) -> Stat | None:
        """See Store. OSError with EINVAL as in `read`."""
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
        """See Store. Takes away whatever has the name, but no folder."""
        return self._remove(check_name(name))

    def move(self, name: str, to: str) -> bool:
        """See Store. The same file: its version stays."""
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
        """See Store. Also in none: names that no store can have, which strangers may make.

        Costs one call a file and three a folder. Continued within seconds it goes on where it
        stood; later the folders on the way to `after` are read again, not their files.
        """
        check_folder(folder)
        if limit < 1:
            raise ValueError(f"a page of {limit} entries leads nowhere")
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
        """See Store. Calls in flight go on; later ones raise OSError with EBADF."""
        self._root = None
        self._walks.clear()

    def temporaries(self, folder: str = "") -> Iterator[ListEntry]:
        """Temporary files below `folder`, being written or left by the dead; for a sweep.

        Nothing but its age tells which one is: `modified_s` moves while it is written.
        """
        check_folder(folder)
        return walk(self._files, self._use(), folder, "", is_temporary)

    def remove_temporary(self, name: str) -> bool:
        """Remove one of `temporaries`; False where it is gone.

        If its writer lives, its `publish` raises OSError and leaves nothing.
        """
        return self._remove(check_temporary(name))

    def occupied(self, folder: str = "", after: str = "") -> Iterator[FileUsage]:
        """Every file below `folder` behind `after`, in name order, and what it takes up.

        For a sweep: also temporary files, and those of names that no store can have.
        """
        check_folder(folder)
        return occupied(self._files, self._use(), folder, after)

    def folders(self, folder: str = "") -> Iterator[str]:
        """Folders below `folder`, each after those in it; for a sweep."""
        check_folder(folder)
        return folders(self._files, self._use(), folder)

    def remove_folder(self, name: str) -> bool:
        """Remove a folder; False where it is gone or not empty. Writers make it again."""
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
        """The folder; it stays open as long as the caller keeps the reference."""
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
        """Give the file its name; False where the name is taken."""
        take = self._files.rename_exclusive if self._renames else self._files.link
        try:
            take(temporary, name, root.fd)
        except FileExistsError:
            return False
        return True


def _irregular(name: str) -> OSError:
    return OSError(errno.EINVAL, "not a regular file", name)
