"""The view of a store: a bucket, or whatever else keeps files by name.

What a store does not show is not seen here either: names that it cannot have. It has no links,
no pipes, no temporary files and no file system, and a file takes up its length. A folder is
whatever names have in common.

Invariants: nothing is changed; a folder that is not looked into is stepped over, its files are
not listed.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from kvtier.inspection.spaces import STORE_CURSOR_NAME
from kvtier.inspection.state_file import StoreStateFile, read_small
from kvtier.inspection.view import Capacity, Entry
from kvtier.tiers.base import Buffer
from kvtier.tiers.shared.store import ListEntry, Read, Stat, Store, join

_PAGE: Final = 1000


_BEHIND: Final = "~"
"""Comes after every character of a legal name."""


_FOLDER = Stat(0, "", 0.0)


class StoreView:
    """See `View`. Closes the store with itself."""

    def __init__(self, store: Store, place: str) -> None:
        """`place`: the store's URL, or what else tells it from others."""
        self.place = place
        self._store = store

    @property
    def identity(self) -> str:
        """See View."""
        return self.place

    def entries(self, folder: str = "") -> Iterator[Entry]:
        """See View. One request each: what is below a folder is stepped over."""
        after = ""
        while page := self._store.list(folder, after, 1).entries:
            (found,) = page
            below = found.name.removeprefix(f"{folder}/") if folder else found.name
            part, is_deeper, _ = below.partition("/")
            if is_deeper:
                top = join(folder, part)
                yield _folder(top)
                after = _end_of(top)
            else:
                yield _file(found)
                after = found.name

    def walk(
        self,
        folder: str,
        looks_into: Callable[[str], bool],
        refused: Callable[[str, OSError], None],
        after: str = "",
    ) -> Iterator[Entry]:
        """See View. A listing that is refused raises: nobody can tell what was left out."""
        del refused
        opened = _FolderFilter(folder, looks_into)
        behind: str | None = after
        while behind is not None:
            page = self._store.list(folder, behind, _PAGE)
            behind = page.after
            for found in page.entries:
                closed = opened.closed_above(found.name)
                if closed is None:
                    if found.name > after:
                        yield _file(found)
                    continue
                if f"{closed}/" > after:
                    yield _folder(closed)
                behind = _end_of(closed)
                break

    def stat(self, name: str) -> Stat | None:
        """See View."""
        return self._store.stat(name)

    def read(self, name: str, limit_bytes: int) -> bytes | None:
        """See View."""
        return read_small(self._store, name, limit_bytes)

    def read_into(self, name: str, offset: int, buffers: Sequence[Buffer]) -> Read | None:
        """See View."""
        return self._store.read(name, offset, buffers)

    def file_system(self) -> Capacity | None:
        """Nobody can tell."""
        return None

    def note(self) -> StoreStateFile:
        """See View: beside what evictors note."""
        return StoreStateFile(self._store, STORE_CURSOR_NAME, self.place)

    def open_store(self) -> Store:
        """See View. The same one: whoever may not write is told when it comes to it."""
        return self._store

    def close(self) -> None:
        """Idempotent."""
        self._store.close()


class _FolderFilter:
    """Which folders are looked into; each is asked about once, as names come in order."""

    def __init__(self, root: str, looks_into: Callable[[str], bool]) -> None:
        self._root = root
        self._looks_into = looks_into
        self._last = root

    def closed_above(self, name: str) -> str | None:
        """The uppermost folder above `name` that is not looked into; None where all are."""
        folder = name.rpartition("/")[0]
        if folder == self._last:
            return None
        at = self._root
        for part in folder.removeprefix(self._root).strip("/").split("/"):
            if part:
                at = join(at, part)
                if not self._looks_into(at):
                    return at
        self._last = folder
        return None


def _file(found: ListEntry) -> Entry:
    return Entry(found.name, "file", found.stat, found.stat.size)


def _folder(name: str) -> Entry:
    return Entry(name, "folder", _FOLDER, 0)


def _end_of(folder: str) -> str:
    """Comes after all names in the folder, and before those behind it."""
    return f"{folder}/{_BEHIND}"
