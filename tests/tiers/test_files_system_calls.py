"""The real system calls that do more than pass their arguments on."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from kvtier.testing.samples import aligned
from kvtier.tiers import files as module
from kvtier.tiers.files import FolderEntry, SystemCalls, is_regular
from tests.tiers.shared.broken import is_direct

FILES = SystemCalls()
NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL


@pytest.fixture
def fd(tmp_path: Path):  # type: ignore[no-untyped-def]
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_open_is_private_follows_no_link_and_never_waits(tmp_path: Path, fd: int) -> None:
    FILES.close(FILES.open("mine", NEW, fd))
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o600
    FILES.make_folder("folder", fd)
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to("mine")
    with pytest.raises(OSError, match="symbolic"):
        FILES.open("link", os.O_RDONLY, fd)
    assert not is_regular(FILES.stat("link", fd))
    os.mkfifo(tmp_path / "fifo")
    fifo = FILES.open("fifo", os.O_RDONLY, fd)
    assert not is_regular(FILES.stat_open(fifo))
    assert not os.get_inheritable(fifo)
    FILES.close(fifo)
    assert is_regular(FILES.stat("mine", fd))


def test_use_page_cache_clears_direct_flag(tmp_path: Path, fd: int) -> None:
    try:
        handle = FILES.open("file", NEW | os.O_DIRECT, fd)
    except OSError:
        pytest.skip("this file system has no O_DIRECT")
    page = aligned(np.arange(4096, dtype=np.uint32).astype(np.uint8))
    assert FILES.pwritev(handle, [page], 0) == 4096
    FILES.use_page_cache(handle)
    assert not is_direct(handle)
    assert FILES.pwritev(handle, [page[:7], page[9:10]], 4093) == 8
    FILES.close(handle)
    assert (tmp_path / "file").stat().st_size == 4101


def test_rename_exclusive_replaces_nothing(tmp_path: Path, fd: int) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    with pytest.raises(FileExistsError):
        FILES.rename_exclusive("one", "two", fd)
    with pytest.raises(FileExistsError):
        FILES.link("one", "two", fd)
    with pytest.raises(FileNotFoundError):
        FILES.rename_exclusive("absent", "three", fd)
    FILES.rename_exclusive("one", "three", fd)
    assert (tmp_path / "three").read_text() == "one"
    assert (tmp_path / "two").read_text() == "two"
    FILES.rename("three", "two", fd)
    assert sorted(os.listdir(tmp_path)) == ["two"]
    assert (tmp_path / "two").read_text() == "one"


def test_rename_exclusive_without_library_support_raises_enosys(
    monkeypatch: pytest.MonkeyPatch, fd: int
) -> None:
    monkeypatch.setattr(module, "_renameat2", None)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSYS)):
        FILES.rename_exclusive("one", "two", fd)


def test_entries_lists_only_files_and_folders(tmp_path: Path, fd: int) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "deep").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "way-out").symlink_to("/", target_is_directory=True)
    os.mkfifo(tmp_path / "fifo")
    assert sorted(FILES.entries(".", fd)) == [
        FolderEntry("file", False),
        FolderEntry("folder", True),
    ]
    assert FILES.entries("folder", fd) == [FolderEntry("deep", True)]
    with pytest.raises(NotADirectoryError):
        FILES.entries("way-out", fd)


def test_allocate_reserves_space_or_extends_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    FILES.allocate(fd, 1 << 20)
    assert os.fstat(fd).st_blocks * 512 >= 1 << 20

    def refuse(fd: int, offset: int, length: int) -> None:
        raise OSError(code, "refused")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    code = errno.EOPNOTSUPP
    FILES.allocate(fd, 2 << 20)
    assert os.fstat(fd).st_size == 2 << 20
    code = errno.ENOSPC
    with pytest.raises(OSError, match="refused"):
        FILES.allocate(fd, 3 << 20)
    os.close(fd)
