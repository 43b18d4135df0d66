"""Walking a shared folder: calls per file, illegal names, walks kept between pages."""

import os
from pathlib import Path

import pytest

from kvtier.clock import VirtualClock
from kvtier.tiers.shared.folder import (
    RESUMABLE_S,
    RootFolder,
    WalkCache,
    folders,
    occupied,
    stat_of,
    walk,
)
from kvtier.tiers.shared.store import is_legal_part
from tests.tiers.shared.broken import BrokenFiles


def root_of(path: Path) -> RootFolder:
    return RootFolder(os.open(path, os.O_RDONLY | os.O_DIRECTORY))


def names(files: BrokenFiles, path: Path, after: str = "") -> list[str]:
    return [entry.name for entry in walk(files, root_of(path), "", after, is_legal_part)]


def test_walk_omits_illegal_names_and_links(tmp_path: Path) -> None:
    for folder in ("a", ".snapshot", "lost+found"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").touch()
    for name in (".hidden", ".tmp-host-1", "with space", "ümlaut", "a/.tmp-x"):
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to("a/file")
    (tmp_path / "way").symlink_to("a", target_is_directory=True)
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    assert names(BrokenFiles(), tmp_path) == ["a/file"]


def test_walk_skips_folders_before_the_start(tmp_path: Path) -> None:
    for folder in "abc":
        (tmp_path / folder).mkdir()
        for name in "xyz":
            (tmp_path / folder / name).touch()
    files = BrokenFiles()
    assert names(files, tmp_path, "b/y") == ["b/z", "c/x", "c/y", "c/z"]
    assert files.calls["entries"] == 3
    assert files.calls["stat"] == 4


def test_walk_omits_files_that_vanish(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        for name in "xyz":
            (tmp_path / folder / name).touch()
    found = walk(BrokenFiles(), root_of(tmp_path), "", "", is_legal_part)
    assert next(found).name == "a/x"
    (tmp_path / "a" / "y").unlink()
    (tmp_path / "a" / "z").unlink()
    os.mkfifo(tmp_path / "a" / "z")
    (tmp_path / "b").rename(tmp_path / "elsewhere")
    (tmp_path / "b").touch()
    assert list(found) == []


def test_walk_raises_errors_of_the_file_system(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for call in ("entries", "stat"):
        files = BrokenFiles()
        files.errors[call] = 5
        with pytest.raises(OSError, match="Input/output"):
            names(files, tmp_path)


def test_folders_follow_the_folders_inside_them(tmp_path: Path) -> None:
    for folder in ("a/b/c", "a/d", ".git/x", "e"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "a" / "file").touch()
    found = list(folders(BrokenFiles(), root_of(tmp_path), ""))
    assert found == ["a/b/c", "a/b", "a/d", "a", "e"]
    assert list(folders(BrokenFiles(), root_of(tmp_path), "a/b")) == ["a/b/c"]
    assert list(folders(BrokenFiles(), root_of(tmp_path), "no")) == []


def test_version_survives_move_but_not_rewrite(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("one")
    before = stat_of(file.stat())
    file.rename(tmp_path / "moved")
    os.link(tmp_path / "moved", file)
    file.chmod(0o400)
    assert stat_of(file.stat()) == before
    assert before.modified_s == file.stat().st_mtime
    assert before.size == 3
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    assert stat_of(file.stat()).version != before.version


def test_walk_cache_keeps_walks_for_a_short_time() -> None:
    clock = VirtualClock()
    walks = WalkCache(clock)
    first = iter(())
    walks.keep("a", "x", first)
    assert walks.take("a", "y") is None
    assert walks.take("b", "x") is None
    assert walks.take("a", "x") is first
    assert walks.take("a", "x") is None, "a walk is given to one caller"
    walks.keep("a", "x", first)
    clock.advance(RESUMABLE_S)
    assert walks.take("a", "x") is None
    for number in range(20):
        walks.keep("a", str(number), first)
    assert [number for number in range(20) if walks.take("a", str(number))] == list(range(12, 20))
    walks.keep("a", "x", first)
    walks.clear()
    assert walks.take("a", "x") is None


def test_occupied_reports_space_and_access_time(tmp_path: Path) -> None:
    """Holes take no space, the last read counts, and files of illegal names are included."""
    (tmp_path / "a").mkdir()
    with (tmp_path / "a" / "holes").open("wb") as file:
        file.truncate(1 << 30)
    (tmp_path / "a" / "full").write_bytes(os.urandom(64 << 10))
    os.sync()
    for name in ("a/.tmp-host-1", "with space"):
        (tmp_path / name).touch()
    os.utime(tmp_path / "a" / "full", (3000, 2000))
    os.utime(tmp_path / "a" / "holes", (1000, 2000))
    found = {entry.name: entry for entry in occupied(BrokenFiles(), root_of(tmp_path), "", "")}
    assert sorted(found) == ["a/.tmp-host-1", "a/full", "a/holes", "with space"]
    assert found["a/holes"].physical_bytes < 1 << 20
    assert 64 << 10 <= found["a/full"].physical_bytes < 1 << 20
    assert found["a/full"][2:] == (2000, 3000)
    assert found["a/holes"][2:] == (2000, 2000), "it was never read since it was written"
    rest = [entry.name for entry in occupied(BrokenFiles(), root_of(tmp_path), "", "a/full")]
    assert rest == ["a/holes", "with space"]
