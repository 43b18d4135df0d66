"""The real system calls: the two that decide something."""

import errno
import os
from pathlib import Path

import pytest

from kvtier.tiers.files import SystemCalls
from tests.tiers.disk.slabs import plain_folder


def test_open_creates_private_file_and_follows_no_link(tmp_path: Path) -> None:
    folder = plain_folder(tmp_path / "slab")
    (folder.path / "link").symlink_to("/etc/passwd")
    fd = folder.open_file("mine", os.O_RDWR | os.O_CREAT)
    assert os.fstat(fd).st_mode & 0o777 == 0o600
    os.close(fd)
    with pytest.raises(OSError, match="symbolic"):
        folder.open_file("link", os.O_RDONLY)
    folder.close()


def test_allocate_reserves_space_or_extends_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    SystemCalls().allocate(fd, 1 << 20)
    assert os.fstat(fd).st_blocks * 512 >= 1 << 20

    def refuse(fd: int, offset: int, length: int) -> None:
        raise OSError(code, "refused")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    code = errno.EOPNOTSUPP
    SystemCalls().allocate(fd, 2 << 20)
    assert os.fstat(fd).st_size == 2 << 20
    code = errno.ENOSPC
    with pytest.raises(OSError, match="refused"):
        SystemCalls().allocate(fd, 3 << 20)
    os.close(fd)
