"""Where a check goes on, and what is not believed."""

import json
import os
import stat
from pathlib import Path

import pytest

from kvtier.blocks.checksum import HmacSha256, Xxh3
from kvtier.inspection.cursor import Cursor, CursorFile
from kvtier.inspection.report import Finding, Report


def cursor(**fields) -> Cursor:
    report = Report(path="/kv", spaces=["a"], started_s=1.0, segments=3)
    report.add(Finding(file="x", kind="segment", reason="y", repaired="quarantined"))
    sample = {"device": 1, "inode": 2, "spaces": ("a",), "repairs": False, "after": "a/b"}
    return Cursor(report=report, **{**sample, **fields})


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    file = CursorFile.within(tmp_path, Xxh3())
    assert file.load() is None
    file.save(cursor())
    assert CursorFile.within(tmp_path, Xxh3()).load() == cursor()
    file.save(cursor(after="a/c"))
    assert [path.name for path in tmp_path.iterdir()] == [".kvtier-fsck.json"]
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    file.remove()
    file.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("spoil", ["truncate", "change", "empty", "folder", "pipe", "link"])
def test_a_file_that_cannot_be_trusted_is_as_good_as_none(tmp_path: Path, spoil: str) -> None:
    file = CursorFile.within(tmp_path, Xxh3())
    file.save(cursor())
    content = file.path.read_bytes()
    file.path.unlink()
    if spoil == "folder":
        file.path.mkdir()
    elif spoil == "pipe":
        os.mkfifo(file.path)
    elif spoil == "link":
        (tmp_path / "other").write_bytes(content)
        file.path.symlink_to(tmp_path / "other")
    else:
        changed = content.replace(b'"a/b"', b'"z/z"')
        file.path.write_bytes({"truncate": content[:-9], "change": changed, "empty": b""}[spoil])
    assert file.load() is None


def test_only_who_has_the_secret_can_make_one(tmp_path: Path) -> None:
    CursorFile.within(tmp_path, Xxh3()).save(cursor())
    assert CursorFile.within(tmp_path, HmacSha256(b"s" * 32)).load() is None
    CursorFile.within(tmp_path, HmacSha256(b"s" * 32)).save(cursor())
    assert CursorFile.within(tmp_path, HmacSha256(b"t" * 32)).load() is None
    assert CursorFile.within(tmp_path, HmacSha256(b"s" * 32)).load() == cursor()


def test_another_format_is_not_read(tmp_path: Path) -> None:
    file = CursorFile.within(tmp_path, Xxh3())
    file.save(cursor(format=2))
    assert json.loads(file.path.read_bytes())["cursor"]["format"] == 2
    assert file.load() is None


@pytest.mark.parametrize(
    "other", [{"device": 9}, {"inode": 9}, {"spaces": ("b",)}, {"repairs": True}]
)
def test_a_check_of_something_else_is_another(other: dict) -> None:
    assert cursor(after="q").is_of(cursor())
    assert not cursor(**other).is_of(cursor())


def test_a_place_that_cannot_be_written_to_raises(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        CursorFile(tmp_path / "none" / "x", Xxh3()).save(cursor())
