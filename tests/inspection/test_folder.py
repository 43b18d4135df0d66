"""A folder that is only looked at."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvtier.errors import InvalidSettings
from kvtier.inspection.folder import Folder
from kvtier.inspection.view import Entry, Irregular


@pytest.fixture
def folder(tmp_path: Path):
    for name in ("a/z", "a-b", "a/b/c", "d"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    opened = Folder(tmp_path)
    yield opened
    opened.close()


def walked(folder: Folder, after: str = "", below: str = "", stays_out: str = "-") -> list[str]:
    def refused(name: str, error: OSError) -> None:
        raise AssertionError(name) from error

    found = folder.walk(below, lambda name: name != stays_out, refused, after)
    return [entry.position for entry in found]


def test_a_walk_is_in_the_order_of_whole_names(folder: Folder) -> None:
    assert walked(folder) == ["a-b", "a/b/c", "a/z", "d"]
    assert walked(folder, below="a") == ["a/b/c", "a/z"]


@pytest.mark.parametrize("stays_out", ["-", "a", "a/b"])
def test_a_walk_goes_on_behind_every_position(folder: Folder, stays_out: str) -> None:
    whole = walked(folder, stays_out=stays_out)
    for number, position in enumerate(whole):
        assert walked(folder, position, stays_out=stays_out) == whole[number + 1 :]


def test_links_and_pipes_are_shown_and_not_followed(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "e").symlink_to(tmp_path / "a")
    os.mkfifo(tmp_path / "f")
    whats = {entry.name: entry.what for entry in folder.entries()}
    assert whats == {"a": "folder", "a-b": "file", "d": "file", "e": "link", "f": "pipe"}
    assert walked(folder)[-2:] == ["e", "f"]
    for name in ("e", "f", "a"):
        with pytest.raises(Irregular):
            folder.read_into(name, 0, [np.zeros(8, np.uint8)])
        with pytest.raises(Irregular):
            folder.stat(name)
        with pytest.raises(OSError, match="not a regular file"):
            folder.read(name, 10)


def test_what_cannot_be_listed_is_told(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_mount_that_is_gone_ends_the_walk(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(name: str = "") -> Iterator[Entry]:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    monkeypatch.setattr(folder, "entries", gone)
    with pytest.raises(OSError, match="not connected"):
        walked(folder)


def test_a_folder_that_vanishes_is_empty(folder: Folder) -> None:
    assert walked(folder, below="gone") == []


def test_small_files_are_read_and_large_ones_refused(folder: Folder) -> None:
    assert folder.read("d", 1) == b"d"
    assert folder.read("none", 1) is None
    assert folder.read("d/none", 1) is None
    with pytest.raises(OSError, match="longer than 2 bytes"):
        folder.read("a/z", 2)


def test_the_file_system_is_known(folder: Folder) -> None:
    found = folder.file_system()
    assert 0 <= found.free_bytes <= found.total_bytes


def test_what_is_no_folder_is_refused_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="does not exist; name the folder"):
        Folder(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(InvalidSettings, match="is not a folder; name the folder"):
        Folder(tmp_path / "file")


def test_a_folder_that_may_not_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InvalidSettings, match=r"\(Permission denied\); run this as a user"):
        Folder(tmp_path)


def test_closing_twice_is_fine(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.close()
    folder.close()
