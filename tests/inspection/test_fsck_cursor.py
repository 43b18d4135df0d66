"""The cursor of an interrupted check, and cursors that are ignored."""

import json
import os
import stat
from pathlib import Path

import pytest

from kvtier.blocks.checksum import Checksum, HmacSha256, Xxh3
from kvtier.inspection.fsck import Cursor, CursorKeeper
from kvtier.inspection.report import CheckReport, Finding
from kvtier.inspection.state_file import LocalStateFile


def cursor(**fields) -> Cursor:
    report = CheckReport(path="/kv", spaces=["a"], started_s=1.0, segments=3)
    report.add(Finding(file="x", kind="segment", reason="y", repaired="quarantined"))
    sample = {"store": "1:2", "spaces": ("a",), "repairs": False, "after": "a/b"}
    return Cursor(report=report, **{**sample, **fields})


def test_cursor_round_trip(tmp_path: Path) -> None:
    file = keeper(tmp_path / "cursor", Xxh3())
    path = tmp_path / "cursor"
    assert file.load() is None
    file.save(cursor())
    assert keeper(tmp_path / "cursor", Xxh3()).load() == cursor()
    file.save(cursor(after="a/c"))
    assert [path.name for path in tmp_path.iterdir()] == ["cursor"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    file.remove()
    file.remove()
    assert list(tmp_path.iterdir()) == []


def keeper(path: Path, sealer: Checksum) -> CursorKeeper:
    return CursorKeeper(LocalStateFile(path), sealer)


@pytest.mark.parametrize("spoil", ["truncate", "change", "empty", "folder", "pipe", "link"])
def test_cursor_that_is_damaged_is_ignored(tmp_path: Path, spoil: str) -> None:
    file = keeper(tmp_path / "cursor", Xxh3())
    path = tmp_path / "cursor"
    file.save(cursor())
    content = path.read_bytes()
    path.unlink()
    if spoil == "folder":
        path.mkdir()
    elif spoil == "pipe":
        os.mkfifo(path)
    elif spoil == "link":
        (tmp_path / "other").write_bytes(content)
        path.symlink_to(tmp_path / "other")
    else:
        changed = content.replace(b'"a/b"', b'"z/z"')
        path.write_bytes({"truncate": content[:-9], "change": changed, "empty": b""}[spoil])
    assert file.load() is None


def test_cursor_seal_requires_the_secret(tmp_path: Path) -> None:
    keeper(tmp_path / "cursor", Xxh3()).save(cursor())
    assert keeper(tmp_path / "cursor", HmacSha256(b"s" * 32)).load() is None
    keeper(tmp_path / "cursor", HmacSha256(b"s" * 32)).save(cursor())
    assert keeper(tmp_path / "cursor", HmacSha256(b"t" * 32)).load() is None
    assert keeper(tmp_path / "cursor", HmacSha256(b"s" * 32)).load() == cursor()


def test_cursor_of_another_format_is_ignored(tmp_path: Path) -> None:
    file = keeper(tmp_path / "cursor", Xxh3())
    file.save(cursor(format=3))
    assert json.loads((tmp_path / "cursor").read_bytes())["cursor"]["format"] == 3
    assert file.load() is None


@pytest.mark.parametrize("other", [{"store": "9:2"}, {"spaces": ("b",)}, {"repairs": True}])
def test_cursor_of_another_check_does_not_match(other: dict) -> None:
    assert cursor(after="q").is_for_same_check(cursor())
    assert not cursor(**other).is_for_same_check(cursor())


def test_cursor_save_raises_if_the_place_is_not_writable(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        keeper(tmp_path / "none" / "x", Xxh3()).save(cursor())
