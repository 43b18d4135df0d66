"""Opening a shared folder: what is probed and logged, what is refused, when it is closed."""

import errno
import logging
import os
from pathlib import Path

import pytest

from kvtier.errors import InvalidSettings
from kvtier.tiers.files import DirectIO, SystemCalls
from kvtier.tiers.shared.folder import ProbedFolder, RootFolder, open_root
from kvtier.tiers.shared.store import TemporaryNames
from tests.tiers.shared.broken import BrokenFiles, NetworkFiles


def opened(path: Path, files: SystemCalls | None = None, direct: DirectIO = "auto") -> ProbedFolder:
    return open_root(path, direct, files or BrokenFiles(), TemporaryNames())


def test_open_root_creates_private_folder_and_leaves_it_empty(tmp_path: Path) -> None:
    found = opened(tmp_path / "store")
    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o700
    assert os.fstat(found.root.fd).st_ino == (tmp_path / "store").stat().st_ino
    assert not os.get_inheritable(found.root.fd)
    assert os.listdir(tmp_path / "store") == []
    opened(tmp_path / "store")


@pytest.mark.parametrize(
    ("files", "direct", "message"),
    [
        (BrokenFiles(), "never", "page cache, names taken by exclusive rename"),
        (NetworkFiles(), "never", "page cache, names taken by hard link"),
    ],
)
def test_open_root_logs_probed_capabilities(
    tmp_path: Path,
    files: SystemCalls,
    direct: DirectIO,
    message: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        found = opened(tmp_path, files, direct)
    assert caplog.messages == [f"shared store {tmp_path}: {message}"]
    assert found.renames == ("rename" in message)
    assert not found.direct
    assert os.listdir(tmp_path) == []


def test_direct_io_is_used_where_it_works(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = BrokenFiles()
    with caplog.at_level(logging.INFO):
        if not opened(tmp_path, files).direct:
            pytest.skip("this file system has no O_DIRECT")
    assert "O_DIRECT, names taken by" in caplog.messages[0]
    assert opened(tmp_path, files, "always").direct
    files.refuses_direct = True
    assert not opened(tmp_path, files).direct
    with pytest.raises(InvalidSettings, match=r"shared\.direct_io: .* set .* to auto or never"):
        opened(tmp_path, files, "always")
    assert os.listdir(tmp_path) == []


class NoLinks(NetworkFiles):
    """A file system without exclusive renames whose links fail, or (`obeys`) replace a file."""

    obeys = False

    def link(self, old: str, new: str, folder_fd: int) -> None:
        if not self.obeys:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        os.replace(f"/proc/self/fd/{folder_fd}/{old}", f"/proc/self/fd/{folder_fd}/{new}")


@pytest.mark.parametrize("obeys", [False, True])
def test_open_root_without_exclusive_names_is_refused(tmp_path: Path, obeys: bool) -> None:
    files = NoLinks()
    files.obeys = obeys
    with pytest.raises(InvalidSettings, match=r"shared\.path: .* use another file system"):
        opened(tmp_path, files)
    assert os.listdir(tmp_path) == []


def test_open_root_error_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"^shared\.path: .* parent folder"):
        opened(tmp_path / "no" / "store")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.EROFS, errno.ESTALE])
@pytest.mark.parametrize("call", ["open", "rename_exclusive"])
def test_open_root_of_unwritable_folder_is_refused(tmp_path: Path, call: str, code: int) -> None:
    files = BrokenFiles()
    files.errors[call] = code
    message = "read-only file system; mount" if code == errno.EROFS else os.strerror(code)
    with pytest.raises(InvalidSettings, match=rf"shared\.path: .*{message}"):
        opened(tmp_path, files)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_open_root_on_full_file_system_allows_reading(
    tmp_path: Path, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    files = BrokenFiles()
    files.errors["open"] = code
    found = opened(tmp_path, files)
    assert not found.direct
    assert not found.renames
    assert "is full" in caplog.messages[0]
    assert opened(tmp_path, files, "always").direct


def test_root_folder_is_closed_with_its_last_reference(tmp_path: Path) -> None:
    root = RootFolder(os.open(tmp_path, os.O_RDONLY))
    fd, used = root.fd, root
    del root
    os.fstat(used.fd)
    del used
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
