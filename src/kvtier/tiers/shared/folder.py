"""The folder of a shared store: opening, trying out and walking it."""

import errno
import logging
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from kvtier.blocks.layout import ALIGNMENT
from kvtier.clock import Clock
from kvtier.errors import InvalidSettings
from kvtier.tiers.paths import open_folder, unusable
from kvtier.tiers.shared.files import FolderEntry, StoreFiles, is_regular
from kvtier.tiers.shared.store import ListEntry, Stat, TemporaryNames, is_legal_part, join

logger = logging.getLogger(__name__)

SETTING = "shared.path"
Direct = Literal["auto", "always", "never"]
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_UNKNOWN = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EMLINK})
"""What a file system answers that does not know exclusive renames or links."""


class RootFolder:
    """The open folder. Whoever holds a reference may use `fd`; the last one gone closes it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class ProbedFolder(NamedTuple):
    """An open folder and what its file system can do."""

    root: RootFolder
    direct: bool
    """Whether files go past the page cache."""
    renames: bool
    """Whether a rename can be exclusive; if not, hard links are."""


def open_root(path: Path, direct: Direct, files: StoreFiles, names: TemporaryNames) -> ProbedFolder:
    """Make (mode 0700), open and try out the folder; what was found is one line in the log.

    Raises InvalidSettings naming `shared.path`: no parent, not a folder, not writable, neither
    exclusive rename nor hard links; or `shared.direct_io`: `always` where there is no O_DIRECT.
    A full file system is no error: what it holds can be read. It gets no more than hard links
    then, and no O_DIRECT unless it is `always`.
    """
    root = RootFolder(open_folder(SETTING, path))
    try:
        renames = _has_exclusive_rename(path, root, files, names)
        direct_works = direct != "never" and _has_direct(root, files, names)
    except OSError as error:
        if error.errno not in _FULL:
            raise unusable(SETTING, path, error) from error
        logger.warning("shared store %s is full: it could not be tried out", path)
        renames, direct_works = False, direct == "always"
    if direct == "always" and not direct_works:
        raise InvalidSettings(
            f"shared.direct_io: the file system of {path} does not take O_DIRECT; "
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
    path: Path, root: RootFolder, files: StoreFiles, names: TemporaryNames
) -> bool:
    """Whether renames can be exclusive; InvalidSettings where hard links cannot be made either."""
    if _excludes(files.rename_exclusive, root, files, names):
        return True
    if _excludes(files.link, root, files, names):
        return False
    raise InvalidSettings(
        f"{SETTING}: the file system of {path} knows neither exclusive renames nor hard links, "
        "so that two writers cannot be kept apart; use another file system"
    )


def _excludes(
    take: Callable[[str, str, int], None],
    root: RootFolder,
    files: StoreFiles,
    names: TemporaryNames,
) -> bool:
    """Whether `take` gives a free name to one file and refuses it to the next.

    Both are tried: the kernel refuses a taken name itself, before it asks a file system that
    knows no exclusive rename and would refuse the free one.
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
            discard(name, root, files)
    return False


def _has_direct(root: RootFolder, files: StoreFiles, names: TemporaryNames) -> bool:
    """Whether O_DIRECT works: a page is written and read back."""
    name = names.next("")
    page = mmap.mmap(-1, 2 * ALIGNMENT)
    both = np.frombuffer(page, dtype=np.uint8)
    written, read = both[:ALIGNMENT], both[ALIGNMENT:]
    written[:] = np.arange(ALIGNMENT, dtype=np.uint32).astype(np.uint8)
    try:
        fd = files.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_DIRECT, root.fd)
        try:
            files.pwritev(fd, [written], 0)
            files.preadv(fd, [read], 0)
        finally:
            files.close(fd)
    except OSError as error:
        if error.errno in _FULL:
            raise
        return False
    finally:
        discard(name, root, files)
    return bool(np.array_equal(written, read))


def discard(name: str, root: RootFolder, files: StoreFiles) -> None:
    """Remove a temporary file; one that cannot be removed now is left to a sweep."""
    try:
        files.unlink(name, root.fd)
    except OSError:
        pass


RESUMABLE_S = 5.0
"""A listing continued sooner goes on where it stood; later, its folders are read anew."""
_KEPT = 8
_BLOCK_BYTES = 512
"""What `st_blocks` counts, whatever the file system's blocks are."""


def stat_of(result: os.stat_result) -> Stat:
    """What a store says of a file.

    Of a file that is never written again after it got its name, inode, length and modification
    time stay what they are, also when it is moved or linked (unlike the change time); another
    file under the name differs: inode numbers are used again, but not with the same time.
    `touch` counts as another file, which costs its readers one look.
    """
    version = f"{result.st_ino:x}-{result.st_size:x}-{result.st_mtime_ns:x}"
    return Stat(result.st_size, version, result.st_mtime)


class FileUsage(NamedTuple):
    """A file and what it takes up, which a `Stat` cannot say: it changes while the file stays."""

    name: str
    physical_bytes: int
    """Of the device, as `du` counts: less than the length where there are holes."""
    modified_s: float
    accessed_s: float
    """As far as the mount keeps it up; at least `modified_s`."""


def walk(
    files: StoreFiles, root: RootFolder, folder: str, after: str, wanted: Callable[[str], bool]
) -> Iterator[ListEntry]:
    """Files below `folder` whose last part is `wanted`, in name order, those after `after` only.

    Raises OSError where the file system refuses; a file or folder that vanishes is left out.
    """
    for name, result in _walk(files, root, folder, after, wanted):
        yield ListEntry(name, stat_of(result))


def occupied(files: StoreFiles, root: RootFolder, folder: str, after: str) -> Iterator[FileUsage]:
    """As `walk`, all files: also temporary ones, and those of names that no store can have."""
    for name, result in _walk(files, root, folder, after, lambda _part: True):
        accessed_s = max(result.st_mtime, result.st_atime)
        yield FileUsage(name, result.st_blocks * _BLOCK_BYTES, result.st_mtime, accessed_s)


def _walk(
    files: StoreFiles, root: RootFolder, folder: str, after: str, wanted: Callable[[str], bool]
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


def folders(files: StoreFiles, root: RootFolder, folder: str) -> Iterator[str]:
    """Folders below `folder`, each after those in it."""
    for entry in _sorted(files, root, folder):
        if entry.is_folder:
            name = join(folder, entry.name)
            yield from folders(files, root, name)
            yield name


def _sorted(files: StoreFiles, root: RootFolder, folder: str) -> list[FolderEntry]:
    """What is in a folder, in the order of the whole names of the files below it."""
    try:
        entries = files.entries(folder or ".", root.fd)
    except (FileNotFoundError, NotADirectoryError):
        return []
    kept = [entry for entry in entries if not entry.is_folder or is_legal_part(entry.name)]
    kept.sort(key=lambda entry: entry.name + "/" if entry.is_folder else entry.name)
    return kept


class WalkCache:
    """WalkCache between two pages, so that each page does not read its folders again.

    Without it a flat folder of 100,000 files is read whole for every page. Any thread.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, str], tuple[float, Iterator[ListEntry]]] = {}

    def take(self, folder: str, after: str) -> Iterator[ListEntry] | None:
        """The walk of `folder` that stands at `after`, if it was kept a moment ago."""
        with self._lock:
            kept_s, kept = self._kept.pop((folder, after), (0.0, None))
        return kept if self._clock.now_s() < kept_s + RESUMABLE_S else None

    def keep(self, folder: str, after: str, walk: Iterator[ListEntry]) -> None:
        """Have it ready for the next page. The oldest are forgotten."""
        with self._lock:
            self._kept[folder, after] = (self._clock.now_s(), walk)
            while len(self._kept) > _KEPT:
                self._kept.pop(next(iter(self._kept)))

    def forget(self) -> None:
        """Drop all, and with them their hold on the folder."""
        with self._lock:
            self._kept.clear()
