"""The view of a folder."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvtier.errors import InvalidSettings
from kvtier.inspection.folder_view import FolderView
from kvtier.inspection.view import Entry, NotRegularFile


@pytest.fixture
def folder(tmp_path: Path):
    for name in ("a/z", "a-b", "a/b/c", "d"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    opened = FolderView(tmp_path)
    yield opened
    opened.close()


def walked(folder: FolderView, after: str = "", below: str = "", stays_out: str = "-") -> list[str]:
    def refused(name: str, error: OSError) -> None:
        raise AssertionError(name) from error

    found = folder.walk(below, lambda name: name != stays_out, refused, after)
    return [entry.position for entry in found]


def test_walk_is_in_the_order_of_full_names(folder: FolderView) -> None:
    assert walked(folder) == ["a-b", "a/b/c", "a/z", "d"]
    assert walked(folder, below="a") == ["a/b/c", "a/z"]


@pytest.mark.parametrize("stays_out", ["-", "a", "a/b"])
def test_walk_resumes_after_every_position(folder: FolderView, stays_out: str) -> None:
    whole = walked(folder, stays_out=stays_out)
    for number, position in enumerate(whole):
        assert walked(folder, position, stays_out=stays_out) == whole[number + 1 :]


def test_links_and_pipes_are_shown_and_not_followed(folder: FolderView, tmp_path: Path) -> None:
    (tmp_path / "e").symlink_to(tmp_path / "a")
    os.mkfifo(tmp_path / "f")
    whats = {entry.name: entry.what for entry in folder.entries()}
    assert whats == {"a": "folder", "a-b": "file", "d": "file", "e": "link", "f": "pipe"}
    assert walked(folder)[-2:] == ["e", "f"]
    for name in ("e", "f", "a"):
        with pytest.raises(NotRegularFile):
            folder.read_into(name, 0, [np.zeros(8, np.uint8)])
        with pytest.raises(NotRegularFile):
            folder.stat(name)
        with pytest.raises(OSError, match="not a regular file"):
            folder.read(name, 10)


def test_folder_that_cannot_be_listed_is_reported(
    folder: FolderView, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = folder.entries

    def some(name: str = "") -> Iterator[Entry]:
        if name == "a":
            raise PermissionError(errno.EACCES, "Permission denied")
        return entries(name)

    monkeypatch.setattr(folder, "entries", some)
    refused = []
    found = folder.walk("", lambda name: True, lambda name, error: refused.append(name))
    assert [entry.name for entry in found] == ["a-b", "d"]
    assert refused == ["a"]


def test_dead_mount_ends_the_walk(folder: FolderView, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str = "") -> Iterator[Entry]:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    monkeypatch.setattr(folder, "entries", gone)
    with pytest.raises(OSError, match="not connected"):
        walked(folder)


def test_removed_folder_counts_as_empty(folder: FolderView) -> None:
    assert walked(folder, below="gone") == []


def test_read_returns_small_files_and_refuses_large_ones(folder: FolderView) -> None:
    assert folder.read("d", 1) == b"d"
    assert folder.read("none", 1) is None
    assert folder.read("d/none", 1) is None
    with pytest.raises(OSError, match="longer than 2 bytes"):
        folder.read("a/z", 2)


def test_file_system_returns_its_capacity(folder: FolderView) -> None:
    found = folder.file_system()
    assert 0 <= found.free_bytes <= found.total_bytes


def test_path_that_is_not_a_folder_is_refused_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="does not exist; name the folder"):
        FolderView(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(InvalidSettings, match="is not a folder; name the folder"):
        FolderView(tmp_path / "file")


def test_folder_without_read_permission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InvalidSettings, match=r"\(Permission denied\); run this as a user"):
        FolderView(tmp_path)


def test_close_is_idempotent(tmp_path: Path) -> None:
    folder = FolderView(tmp_path)
    folder.close()
    folder.close()
