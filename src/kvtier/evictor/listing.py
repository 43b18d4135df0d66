"""Listing a store in parts, and reading its small files.

Evictors share a store by the first hex digit of a block, so that each scans its part without
touching the others. A store that can tell how much space a file takes up on its device
(`occupied`) is asked for that; elsewhere, as in a bucket, a file takes up its length.
"""

from collections.abc import Iterator, Sequence
from typing import Final, Protocol, runtime_checkable

import numpy as np

from kvtier.tiers.shared.folder import FileUsage
from kvtier.tiers.shared.store import Stat, Store

_BEHIND: Final = "~"
"""A character that sorts after every character of a valid name."""
_PAGE: Final = 1000


@runtime_checkable
class Measured(Protocol):
    """A store that knows the space of files on the device, and lists invalid names as well."""

    def occupied(self, folder: str = "", after: str = "") -> Iterator[FileUsage]:
        """List all files below `folder` whose names sort after `after`, in name order."""
        ...


def files(store: Store, folder: str = "", after: str = "") -> Iterator[FileUsage]:
    """List all files below `folder` whose names sort after `after`, in name order."""
    if isinstance(store, Measured):
        yield from store.occupied(folder, after)
        return
    page = store.list(folder, after, _PAGE)
    while True:
        for name, stat in page.entries:
            yield FileUsage(name, stat.size, stat.modified_s, stat.modified_s)
        if page.after is None:
            return
        page = store.list(folder, page.after, _PAGE)


def with_prefix(store: Store, start: str, after: str = "") -> Iterator[FileUsage]:
    """List the files whose names begin with `start` and sort after `after`.

    Folders that sort before are not read.
    """
    before = f"{start[:-1]}{chr(ord(start[-1]) - 1)}{_BEHIND}"
    for found in files(store, start.rpartition("/")[0], max(after, before)):
        if found.name.startswith(start):
            yield found
        elif found.name > start:
            return


def outside(store: Store, starts: Sequence[str], folder: str = "") -> Iterator[FileUsage]:
    """List the files whose names begin with none of `starts`; those parts are skipped."""
    skipping = tuple(starts)
    after, last = "", None
    while True:
        stepped = False
        for found in files(store, folder, after):
            if last is not None and found.name.startswith(last):
                continue  # A name that sorts after `~`, which a store cannot create.
            if found.name.startswith(skipping):
                last = next(start for start in skipping if found.name.startswith(start))
                after, stepped = last + _BEHIND, True
                break
            yield found
        if not stepped:
            return


def top_names(store: Store) -> list[str]:
    """List the names of folders and files at the top of a store."""
    found: list[str] = []
    after = ""
    while True:
        page = store.list("", after, 1)
        if not page.entries:
            return found
        top = page.entries[0].name.partition("/")[0]
        if not found or found[-1] != top:
            found.append(top)
        # After a folder `model/`, names like `model-0123…/` have been listed already, because
        # they sort before `model/`. After a file `model` they are still to come.
        after = page.entries[0].name if "/" not in page.entries[0].name else f"{top}/{_BEHIND}"


def read_small(store: Store, name: str, limit_bytes: int) -> tuple[bytes, Stat] | None:
    """Return a file's content and its Stat; None if it is missing or exceeds `limit_bytes`.

    The limit protects this process's memory: other programs may write to a store. Raises OSError.
    """
    stat = store.stat(name)
    if stat is None or stat.size > limit_bytes:
        return None
    buffer = np.zeros(stat.size, np.uint8)
    read = store.read(name, 0, [buffer])
    if read is None or read.stat.size != read.filled_bytes:
        return None
    return bytes(buffer[: read.filled_bytes]), read.stat
