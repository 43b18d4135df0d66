"""The folder: used by one process, refused with clear errors, files replaced atomically."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvtier.errors import InvalidSettings
from kvtier.tiers.disk.folder import check_unused, lock_folder
from tests.tiers.disk.slabs import BrokenFiles, plain_folder


def test_second_opener_is_refused_with_process_id(tmp_path: Path) -> None:
    first = plain_folder(tmp_path / "slab")
    with pytest.raises(InvalidSettings) as refused:
        plain_folder(tmp_path / "slab")
    assert str(tmp_path / "slab") in str(refused.value)
    assert f"in use by process {os.getpid()};" in str(refused.value)
    first.close()
    first.close()
    plain_folder(tmp_path / "slab").close()


def test_check_unused_raises_while_folder_is_open(tmp_path: Path) -> None:
    check_unused(tmp_path / "absent")
    first = plain_folder(tmp_path / "slab")
    with pytest.raises(InvalidSettings, match=f"in use by process {os.getpid()};"):
        check_unused(tmp_path / "slab")
    first.close()
    check_unused(tmp_path / "slab")
    plain_folder(tmp_path / "slab").close()


def test_folder_open_in_another_process_is_refused(tmp_path: Path) -> None:
    first = plain_folder(tmp_path / "slab")
    program = (
        "import sys; from pathlib import Path\n"
        "from kvtier.tiers.files import SystemCalls\n"
        "from kvtier.tiers.disk.folder import lock_folder\n"
        "lock_folder(Path(sys.argv[1]), SystemCalls())"
    )
    second = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "slab")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    first.close()
    assert second.returncode != 0
    assert f"in use by process {os.getpid()};" in second.stderr


def test_missing_parent_is_refused_with_setting(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"^disk\.path: .* parent folder"):
        plain_folder(tmp_path / "no" / "slab")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder nobody can write to")
def test_folder_that_takes_no_files_is_refused() -> None:
    with pytest.raises(InvalidSettings, match=r"disk\.path: /proc/self .*cannot be used"):
        plain_folder(Path("/proc/self"))


@pytest.mark.parametrize("call", ["open", "write", "sync_data", "rename"])
def test_replace_is_atomic_and_durable(tmp_path: Path, call: str) -> None:
    files = BrokenFiles()
    folder = lock_folder(tmp_path / "slab", files)
    folder.replace("name", [b"old"])
    files.errors[call] = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        folder.replace("name", [b"new"])
    files.errors.clear()
    assert folder.read("name") == b"old"
    assert folder.names() == ["kvtier.lock", "name"]
    files.short["write"] = 2
    folder.replace("name", [b"newer", b"", b"still"])
    assert folder.read("name") == b"newerstill"
    assert folder.read("absent") is None
    files.order.clear()
    folder.replace("name", [b"n"])
    durable = ["sync_data", "rename", "sync_data"]
    assert [call for call in files.order if call in durable] == durable
    folder.close()


def test_remove_temporaries_removes_only_own_files(tmp_path: Path) -> None:
    folder = plain_folder(tmp_path / "slab")
    (folder.path / folder.temporary_name()).touch()
    (folder.path / "temporary-of-another").touch()
    folder.remove_temporaries()
    assert folder.names() == ["kvtier.lock", "temporary-of-another"]
    folder.close()


def test_names_are_resolved_in_opened_folder(tmp_path: Path) -> None:
    folder = plain_folder(tmp_path / "slab")
    (tmp_path / "slab").rename(tmp_path / "moved")
    (tmp_path / "slab").mkdir()
    folder.replace("name", [b"data"])
    assert (tmp_path / "moved" / "name").read_bytes() == b"data"
    assert list((tmp_path / "slab").iterdir()) == []
    folder.close()
