"""The view of a store, which walks as that of a folder."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from kvtier.inspection.folder_view import FolderView
from kvtier.inspection.store_view import StoreView
from kvtier.inspection.view import View
from kvtier.testing.memory_store import MemoryStore
from kvtier.tiers.shared.store import ListPage

NAMES = ("a-b", "a/b/c", "a/b/d", "a/z", "a.x/y", "d", "e/f/g/h", "e/f/i", "g")


def memory() -> MemoryStore:
    store = MemoryStore()
    for name in NAMES:
        store.put(name, name.encode())
    return store


def folder(path: Path) -> FolderView:
    for name in NAMES:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(name)
    return FolderView(path)


def walked(view: View, after: str = "", below: str = "", stays_out: str = "-") -> list[str]:
    def refused(name: str, error: OSError) -> None:
        raise AssertionError(name) from error

    found = view.walk(below, lambda name: name != stays_out, refused, after)
    return [entry.position for entry in found]


@pytest.mark.parametrize("stays_out", ["-", "a", "a/b", "e", "e/f", "e/f/g", "a.x"])
@pytest.mark.parametrize("page", [1, 2, 1000])
def test_walk_equals_that_of_a_folder(
    tmp_path: Path, stays_out: str, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvtier.inspection.store_view._PAGE", page)
    files, view = folder(tmp_path), StoreView(memory(), "memory")
    whole = walked(files, stays_out=stays_out)
    assert len(whole) >= 6
    for after in ("", *whole):
        assert walked(view, after, stays_out=stays_out) == walked(files, after, stays_out=stays_out)
    assert walked(view, below="e", stays_out=stays_out) == walked(
        files, below="e", stays_out=stays_out
    )
    files.close()


@pytest.mark.parametrize("below", ["", "a", "a/b", "none"])
def test_entries_equal_those_of_a_folder(tmp_path: Path, below: str) -> None:
    files, view = folder(tmp_path), StoreView(memory(), "memory")

    def listing(place: View) -> list[tuple[str, str]]:
        return [(entry.name, entry.what) for entry in place.entries(below)]

    if below != "none":
        assert listing(view) == listing(files)
        assert len(listing(view)) > 1
    else:
        assert listing(view) == []
    files.close()


def test_folder_not_looked_into_is_not_listed() -> None:
    class Counting(MemoryStore):
        listed = 0

        def list(self, folder: str, after: str = "", limit: int = 1000) -> ListPage:
            page = super().list(folder, after, limit)
            self.listed += len(page.entries)
            return page

    store = Counting()
    for number in range(5000):
        store.put(f"strange/{number}", b"")
    store.put("z", b"")
    assert walked(StoreView(store, "memory"), stays_out="strange") == ["strange/", "z"]
    assert store.listed < 1100


def test_physical_bytes_are_the_length() -> None:
    (entry,) = StoreView(memory(), "memory").entries("a.x")
    assert (entry.physical_bytes, entry.stat.size, entry.is_file) == (5, 5, True)


def test_reads_equal_those_of_the_store() -> None:
    store = memory()
    view = StoreView(store, "s3://bucket/x")
    assert view.read("a/z", 3) == b"a/z"
    assert view.read("none", 3) is None
    with pytest.raises(OSError, match="longer than 2 bytes"):
        view.read("a/z", 2)
    buffer = np.zeros(2, np.uint8)
    assert view.read_into("a/z", 1, [buffer]) == store.read("a/z", 1, [buffer])
    assert bytes(buffer) == b"/z"
    assert view.stat("a/z") == store.stat("a/z")
    assert view.file_system() is None
    assert (view.identity, view.open_store()) == ("s3://bucket/x", store)


def test_listing_that_fails_ends_the_walk() -> None:
    class Refusing(MemoryStore):
        def list(self, folder: str, after: str = "", limit: int = 1000) -> ListPage:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    view = StoreView(Refusing(), "memory")
    with pytest.raises(PermissionError):
        walked(view)
