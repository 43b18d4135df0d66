"""Listing a shared folder: in the order of names, resumable, one folder in memory at a time.

The order is that of whole names, as in a bucket: `a-b` comes before `a/b` because `-` comes
before `/`. A walk is no snapshot: what appears or vanishes on the way may be in it or not, what
stays is in it exactly once. Links and everything that is neither file nor folder are in none.
"""

import os
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

from kvtier.clock import Clock
from kvtier.tiers.shared.files import Entry, StoreFiles, is_regular
from kvtier.tiers.shared.names import is_legal_part, join
from kvtier.tiers.shared.opening import Root
from kvtier.tiers.shared.store import Listed, Stat

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


class Occupied(NamedTuple):
    """A file and what it takes up, which a `Stat` cannot say: it changes while the file stays."""

    name: str
    physical_bytes: int
    """Of the device, as `du` counts: less than the length where there are holes."""
    modified_s: float
    accessed_s: float
    """As far as the mount keeps it up; at least `modified_s`."""


def walk(
    files: StoreFiles, root: Root, folder: str, after: str, wanted: Callable[[str], bool]
) -> Iterator[Listed]:
    """Files below `folder` whose last part is `wanted`, in name order, those after `after` only.

    Raises OSError where the file system refuses; a file or folder that vanishes is left out.
    """
    for name, result in _walk(files, root, folder, after, wanted):
        yield Listed(name, stat_of(result))


def occupied(files: StoreFiles, root: Root, folder: str, after: str) -> Iterator[Occupied]:
    """As `walk`, all files: also temporary ones, and those of names that no store can have."""
    for name, result in _walk(files, root, folder, after, lambda _part: True):
        accessed_s = max(result.st_mtime, result.st_atime)
        yield Occupied(name, result.st_blocks * _BLOCK_BYTES, result.st_mtime, accessed_s)


def _walk(
    files: StoreFiles, root: Root, folder: str, after: str, wanted: Callable[[str], bool]
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


def folders(files: StoreFiles, root: Root, folder: str) -> Iterator[str]:
    """Folders below `folder`, each after those in it."""
    for entry in _sorted(files, root, folder):
        if entry.is_folder:
            name = join(folder, entry.name)
            yield from folders(files, root, name)
            yield name


def _sorted(files: StoreFiles, root: Root, folder: str) -> list[Entry]:
    """What is in a folder, in the order of the whole names of the files below it."""
    try:
        entries = files.entries(folder or ".", root.fd)
    except (FileNotFoundError, NotADirectoryError):
        return []
    kept = [entry for entry in entries if not entry.is_folder or is_legal_part(entry.name)]
    kept.sort(key=lambda entry: entry.name + "/" if entry.is_folder else entry.name)
    return kept


class Walks:
    """Walks between two pages, so that each page does not read its folders again.

    Without it a flat folder of 100,000 files is read whole for every page. Any thread.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, str], tuple[float, Iterator[Listed]]] = {}

    def take(self, folder: str, after: str) -> Iterator[Listed] | None:
        """The walk of `folder` that stands at `after`, if it was kept a moment ago."""
        with self._lock:
            kept_s, kept = self._kept.pop((folder, after), (0.0, None))
        return kept if self._clock.now_s() < kept_s + RESUMABLE_S else None

    def keep(self, folder: str, after: str, walk: Iterator[Listed]) -> None:
        """Have it ready for the next page. The oldest are forgotten."""
        with self._lock:
            self._kept[folder, after] = (self._clock.now_s(), walk)
            while len(self._kept) > _KEPT:
                self._kept.pop(next(iter(self._kept)))

    def forget(self) -> None:
        """Drop all, and with them their hold on the folder."""
        with self._lock:
            self._kept.clear()
