"""The view of a store, such as a bucket.

It shows what the store lists. There are no links, pipes or temporary files and no file system,
and the physical size of a file is its length. A folder is a common prefix of names.

Invariants: nothing is changed. The files of a folder that a walk does not descend into are not
listed.
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
"""Sorts after every character of a legal name."""


_FOLDER = Stat(0, "", 0.0)


class StoreView:
    """A `View` of a store, which it closes together with itself."""

    def __init__(self, store: Store, place: str) -> None:
        """View `store`; `place` is its URL or another string that identifies it."""
        self.place = place
        self._store = store

    @property
    def identity(self) -> str:
        """The place, which identifies a bucket."""
        return self.place

    def entries(self, folder: str = "") -> Iterator[Entry]:
        """Yield the entries of `folder`, with one request each."""
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
        on_unreadable: Callable[[str, OSError], None],
        after: str = "",
    ) -> Iterator[Entry]:
        """Walk as `View.walk` says, but raise OSError for a listing that fails.

        A failed listing does not say which folders it leaves out, so `on_unreadable` is unused.
        """
        del on_unreadable
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
        """Return the Stat of a file; None if it does not exist."""
        return self._store.stat(name)

    def read(self, name: str, limit_bytes: int) -> bytes | None:
        """Return the content of a small file; None if it does not exist."""
        return read_small(self._store, name, limit_bytes)

    def read_into(self, name: str, offset: int, buffers: Sequence[Buffer]) -> Read | None:
        """Fill `buffers` from `offset`; return None if the file does not exist."""
        return self._store.read(name, offset, buffers)

    def file_system(self) -> Capacity | None:
        """Return None, because the size and free space of a store are unknown."""
        return None

    def state_file(self) -> StoreStateFile:
        """Return a file of the store beside the evictors' leases."""
        return StoreStateFile(self._store, STORE_CURSOR_NAME, self.place)

    def open_store(self) -> Store:
        """Return the same store; missing write permission shows at the first write."""
        return self._store

    def close(self) -> None:
        """Close the store."""
        self._store.close()


class _FolderFilter:
    """A filter that asks `looks_into` once for each folder, as names come in order."""

    def __init__(self, root: str, looks_into: Callable[[str], bool]) -> None:
        self._root = root
        self._looks_into = looks_into
        self._last = root

    def closed_above(self, name: str) -> str | None:
        """Return the topmost parent of `name` to skip; None if all of them are looked into."""
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
    """Return a string that sorts after all names in the folder and before all later ones."""
    return f"{folder}/{_BEHIND}"
