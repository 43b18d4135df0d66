"""The folder of a shared store: opening it, probing its file system, and walking its files.

File systems differ: some refuse O_DIRECT, some (NFS, CephFS) support hard links but no exclusive
rename, some neither. What a folder supports is found out once, before the first block, and a folder
that cannot be used is one clear error at start.

A walk lists files in the order of whole names, as a bucket does: `a-b` comes before `a/b` because
`-` comes before `/`. It can be resumed at any name and holds one folder in memory at a time. It is
no snapshot: a file that appears or vanishes meanwhile may be listed or not; a file that stays is
listed exactly once. Links, FIFOs, sockets and devices are never listed.

Invariant: the descriptor of the folder is closed when the last call that uses it has ended and not
before, even where the store was closed while a dead mount held that call. Otherwise the number
could belong to another file by then.
"""

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from kvtier.clock import Clock
from kvtier.errors import InvalidSettings
from kvtier.tiers.files import (
    FULL,
    DirectIO,
    FolderEntry,
    SystemCalls,
    is_regular,
    open_folder,
    remove_if_possible,
    supports_direct_io,
    unusable,
)
from kvtier.tiers.shared.store import ListEntry, Stat, TemporaryNames, is_legal_part, join

logger = logging.getLogger(__name__)

SETTING = "shared.path"
_UNKNOWN = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EMLINK})
"""The errnos of a file system that does not support exclusive renames or hard links."""
RESUMABLE_S = 5.0
"""For how long a listing can be continued without reading its folders again."""
_KEPT = 8
_BLOCK_BYTES = 512
"""The unit of `st_blocks`, whatever the block size of the file system is."""


class RootFolder:
    """An open folder; `fd` stays open as long as there is a reference to the object."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class ProbedFolder(NamedTuple):
    """An open folder and what its file system supports."""

    root: RootFolder
    direct: bool
    """Whether files bypass the page cache (O_DIRECT)."""
    renames: bool
    """Whether renames can be exclusive; if not, names are taken by hard links."""


def open_root(
    path: Path, direct: DirectIO, files: SystemCalls, names: TemporaryNames
) -> ProbedFolder:
    """Create the folder (mode 0700) if needed, open it, probe it and log what it supports.

    Raises InvalidSettings naming `shared.path` where there is no parent, where it is not a folder
    or not writable, and where neither exclusive renames nor hard links work; naming
    `shared.direct_io` where that is `always` and O_DIRECT does not work. A full file system is no
    error, because what it holds can be read: it is not probed, names are taken by hard links, and
    O_DIRECT is used only if it is `always`.
    """
    root = RootFolder(open_folder(SETTING, path))
    try:
        renames = _has_exclusive_rename(path, root, files, names)
        direct_works = direct != "never" and supports_direct_io(files, root.fd, names.next(""))
    except OSError as error:
        if error.errno not in FULL:
            raise unusable(SETTING, path, error) from error
        logger.warning("shared store %s is full: its file system could not be probed", path)
        renames, direct_works = False, direct == "always"
    if direct == "always" and not direct_works:
        raise InvalidSettings(
            f"shared.direct_io: the file system of {path} does not support O_DIRECT; "
            "set shared.direct_io to auto or never"
        )
    logger.info(
        "shared store %s: %s, names taken by %s",
        path,
        "O_DIRECT" if direct_works else "page cache",
        "exclusive rename" if renames else "hard link",
    )
    return ProbedFolder(root, direct_works, renames)


def _has_exclusive_rename(
    path: Path, root: RootFolder, files: SystemCalls, names: TemporaryNames
) -> bool:
    """Return whether exclusive renames work; InvalidSettings if hard links do not work either."""
    if _excludes(files.rename_exclusive, root, files, names):
        return True
    if _excludes(files.link, root, files, names):
        return False
    raise InvalidSettings(
        f"{SETTING}: the file system of {path} supports neither exclusive renames nor hard links, "
        "so two writers of one file cannot be kept apart; use another file system"
    )


def _excludes(
    take: Callable[[str, str, int], None],
    root: RootFolder,
    files: SystemCalls,
    names: TemporaryNames,
) -> bool:
    """Return whether `take` gives a free name to one file and refuses it to the next.

    Both are tried, because the kernel itself refuses a name that is taken; a file system without
    exclusive renames only shows when the name is free.
    """
    first, second, wanted = names.next(""), names.next(""), names.next("")
    try:
        for name in (first, second):
            files.close(files.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, root.fd))
        take(first, wanted, root.fd)
        take(second, wanted, root.fd)
    except FileExistsError:
        return True
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
    finally:
        for name in (first, second, wanted):
            remove_if_possible(files, root.fd, name)
    return False


def stat_of(result: os.stat_result) -> Stat:
    """Return the `Stat` of a file.

    A file is never written again once it has its name, so its inode, length and modification time
    stay the same even when it is moved or linked (unlike the change time). Another file under the
    same name differs: inode numbers are reused, but not with the same time. A file changed by
    `touch` counts as another file, which costs each reader one more look at the header.
    """
    version = f"{result.st_ino:x}-{result.st_size:x}-{result.st_mtime_ns:x}"
    return Stat(result.st_size, version, result.st_mtime)


class FileUsage(NamedTuple):
    """The space that a file takes and its times, which may change while its `Stat` does not."""

    name: str
    physical_bytes: int
    """Bytes on the device, as `du` counts them: fewer than the length if there are holes."""
    modified_s: float
    accessed_s: float
    """The access time as far as the mount updates it; at least `modified_s`."""


def walk(
    files: SystemCalls, root: RootFolder, folder: str, after: str, wanted: Callable[[str], bool]
) -> Iterator[ListEntry]:
    """Yield the files below `folder` after the name `after`, in the order of their names.

    `wanted` decides by the last part of the name. Raises OSError where the file system refuses; a
    file or folder that vanishes meanwhile is left out.
    """
    for name, result in _walk(files, root, folder, after, wanted):
        yield ListEntry(name, stat_of(result))


def occupied(files: SystemCalls, root: RootFolder, folder: str, after: str) -> Iterator[FileUsage]:
    """Yield all files like `walk`, including temporary files and illegal names."""
    for name, result in _walk(files, root, folder, after, lambda _part: True):
        accessed_s = max(result.st_mtime, result.st_atime)
        yield FileUsage(name, result.st_blocks * _BLOCK_BYTES, result.st_mtime, accessed_s)


def _walk(
    files: SystemCalls, root: RootFolder, folder: str, after: str, wanted: Callable[[str], bool]
) -> Iterator[tuple[str, os.stat_result]]:
    for entry in _sorted(files, root, folder):
        name = join(folder, entry.name)
        if entry.is_folder:
            below = name + "/"
            if below > after or after.startswith(below):
                yield from _walk(files, root, name, after, wanted)
        elif name > after and wanted(entry.name):
            try:
                result = files.stat(name, root.fd)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if is_regular(result):
                yield name, result


def folders(files: SystemCalls, root: RootFolder, folder: str) -> Iterator[str]:
    """Yield the folders below `folder`, each one after the folders inside it."""
    for entry in _sorted(files, root, folder):
        if entry.is_folder:
            name = join(folder, entry.name)
            yield from folders(files, root, name)
            yield name


def _sorted(files: SystemCalls, root: RootFolder, folder: str) -> list[FolderEntry]:
    """Return the contents of a folder, in the order of the whole names of the files below."""
    try:
        entries = files.entries(folder or ".", root.fd)
    except (FileNotFoundError, NotADirectoryError):
        return []
    kept = [entry for entry in entries if not entry.is_folder or is_legal_part(entry.name)]
    kept.sort(key=lambda entry: entry.name + "/" if entry.is_folder else entry.name)
    return kept


class WalkCache:
    """Walks that are kept between two pages of a listing. Safe from any thread.

    Without it, a flat folder of 100,000 files would be read as a whole for every page.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, str], tuple[float, Iterator[ListEntry]]] = {}

    def take(self, folder: str, after: str) -> Iterator[ListEntry] | None:
        """Remove and return the walk of `folder` that stands at `after`; None if none was kept."""
        with self._lock:
            kept_s, kept = self._kept.pop((folder, after), (0.0, None))
        return kept if self._clock.now_s() < kept_s + RESUMABLE_S else None

    def keep(self, folder: str, after: str, walk: Iterator[ListEntry]) -> None:
        """Keep a walk for the next page; the oldest ones are removed."""
        with self._lock:
            self._kept[folder, after] = (self._clock.now_s(), walk)
            while len(self._kept) > _KEPT:
                self._kept.pop(next(iter(self._kept)))

    def clear(self) -> None:
        """Remove all walks, and with them their references to the folder."""
        with self._lock:
            self._kept.clear()
