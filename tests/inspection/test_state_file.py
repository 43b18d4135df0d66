"""State files, in a file system and in a store."""

import errno
import stat
from pathlib import Path

import pytest

from kvtier.inspection import state_file
from kvtier.inspection.state_file import LocalStateFile, StateFile, StoreStateFile, read_small
from kvtier.testing.memory_store import MemoryStore


@pytest.fixture(params=["file", "store"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> StateFile:
    if request.param == "file":
        return LocalStateFile(tmp_path / "file")
    return StoreStateFile(MemoryStore(), "leases/file", "s3://bucket")


def test_state_file_returns_the_last_write(file: StateFile) -> None:
    assert file.read() is None
    file.write(b"first")
    file.write(b"2")
    assert file.read() == b"2"
    file.remove()
    file.remove()
    assert file.read() is None


def test_state_file_that_is_too_long_is_refused(
    file: StateFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write(b"12345")
    monkeypatch.setattr(state_file, "BYTES_MAX", 4)
    with pytest.raises(OSError, match="longer than 4 bytes"):
        file.read()


def test_state_file_is_private_and_replaced_atomically(tmp_path: Path) -> None:
    LocalStateFile(tmp_path / "file").write(b"x")
    (file,) = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_state_file_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "file").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic") as caught:
        LocalStateFile(tmp_path / "file").read()
    assert caught.value.errno == errno.ELOOP
    LocalStateFile(tmp_path / "file").write(b"file")
    assert (tmp_path / "secret").read_bytes() == b"secret"


def test_state_file_write_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="full"):
        LocalStateFile(tmp_path / "file").write(b"x")
    assert list(tmp_path.iterdir()) == []


def test_state_file_says_where_it_is(tmp_path: Path) -> None:
    assert LocalStateFile(tmp_path / "x").where == str(tmp_path / "x")
    assert StoreStateFile(MemoryStore(), "a/b", "s3://bucket/c").where == "s3://bucket/c/a/b"


def test_read_small_reads_files_of_a_store() -> None:
    store = MemoryStore()
    assert read_small(store, "a", 5) is None
    store.put("a", b"12345")
    assert read_small(store, "a", 5) == b"12345"
    with pytest.raises(OSError, match="longer than 4 bytes"):
        read_small(store, "a", 4)
