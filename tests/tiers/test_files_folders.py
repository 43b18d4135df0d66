"""Opening a folder: one clear error, with the setting, the path and the fix."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvtier.errors import InvalidSettings
from kvtier.tiers.files import open_folder, unusable


def refused(path: Path) -> str:
    with pytest.raises(InvalidSettings) as caught:
        open_folder("some.path", path)
    said = str(caught.value)
    assert said.startswith("some.path: ")
    assert str(path) in said
    return said


def test_open_folder_creates_private_folder(tmp_path: Path) -> None:
    for _ in range(2):
        fd = open_folder("some.path", tmp_path / "folder")
        assert os.fstat(fd).st_ino == (tmp_path / "folder").stat().st_ino
        assert os.fstat(fd).st_mode & 0o777 == 0o700
        assert not os.get_inheritable(fd)
        os.close(fd)


def test_open_folder_does_not_create_parent_of_missing_mount(tmp_path: Path) -> None:
    assert f"does not exist; create {tmp_path / 'no'} or mount it" in refused(tmp_path / "no" / "x")
    assert not (tmp_path / "no").exists()


def test_open_folder_refuses_files_and_dangling_links(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "file/below", "link"):
        assert "is not a folder; name a folder or remove" in refused(tmp_path / name)


@pytest.fixture
def nobody(tmp_path: Path) -> Iterator[None]:
    """Run without root's permission to write anywhere; `tmp_path` was created with it."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


@pytest.mark.usefixtures("nobody")
def test_open_folder_without_permission_names_the_fix(tmp_path: Path) -> None:
    # Root owns the folder where the tests run as root; `nobody` cannot enter it in any case.
    with contextlib.suppress(PermissionError):
        tmp_path.chmod(0o300)
    assert "cannot be used (Permission denied); name a folder that this user" in refused(tmp_path)
    with contextlib.suppress(PermissionError):
        tmp_path.chmod(0o500)
    assert "cannot be used (Permission denied)" in refused(tmp_path / "below")


def test_read_only_mount_has_its_own_fix() -> None:
    error = OSError(errno.EROFS, os.strerror(errno.EROFS))
    said = str(unusable("some.path", Path("/kv"), error))
    assert said == "some.path: /kv is on a read-only file system; mount it for reading and writing"
