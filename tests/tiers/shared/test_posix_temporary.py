"""Temporary files: written as a whole, durable, in folders that a sweep may remove."""

import errno
import os
from pathlib import Path

import pytest

from kvtier.testing.samples import content, joined
from kvtier.tiers.shared.folder import RootFolder
from kvtier.tiers.shared.posix import TRIES, Durability, TemporaryFiles
from kvtier.tiers.shared.store import TemporaryNames, folder_of, is_temporary
from tests.tiers.shared.broken import BrokenFiles

PARTS = [content(1, 8192), content(2, 4096)]


def root_of(path: Path) -> RootFolder:
    return RootFolder(os.open(path, os.O_RDONLY | os.O_DIRECTORY))


def made(files: BrokenFiles, durability: Durability = "none") -> TemporaryFiles:
    return TemporaryFiles(files, TemporaryNames(), durability)


@pytest.mark.parametrize("folder", ["", "a", "a/b/c"])
def test_temporary_file_is_written_in_its_final_folder(tmp_path: Path, folder: str) -> None:
    name = made(BrokenFiles()).write(root_of(tmp_path), folder, PARTS, 0)
    assert folder_of(name) == folder
    assert is_temporary(name.rpartition("/")[2])
    assert (tmp_path / name).read_bytes() == joined(PARTS)


@pytest.mark.parametrize(
    ("durability", "calls"), [("none", {}), ("fdatasync", {"sync_data": 1}), ("fsync", {"sync": 4})]
)
def test_new_folders_are_as_durable_as_their_files(
    tmp_path: Path, durability: Durability, calls: dict[str, int]
) -> None:
    files = BrokenFiles()
    (tmp_path / "a").mkdir()
    temporary = made(files, durability)
    temporary.write(root_of(tmp_path), "a/b/c/d", PARTS, 0)
    synced = {call: count for call, count in files.calls.items() if "sync" in call}
    assert synced == calls
    assert files.order[-1] == "close"


class Swept(BrokenFiles):
    """A file system whose new folders are removed at once, `sweeps` times."""

    sweeps = 0

    def make_folder(self, name: str, folder_fd: int) -> None:
        super().make_folder(name, folder_fd)
        if self.sweeps:
            self.sweeps -= 1
            self.remove_folder(name, folder_fd)


@pytest.mark.parametrize("durability", ["none", "fsync"])
def test_write_retries_when_a_sweep_removes_the_folder(
    tmp_path: Path, durability: Durability
) -> None:
    files = Swept()
    files.sweeps = (
        TRIES - 2
    )  # the first try makes no folder, and after the last one there is no other
    name = made(files, durability).write(root_of(tmp_path), "a/b", PARTS, 0)
    assert (tmp_path / name).read_bytes() == joined(PARTS)
    files.sweeps = 1000
    with pytest.raises(FileNotFoundError):
        made(files, durability).write(root_of(tmp_path), "c/d", PARTS, 0)
    assert not (tmp_path / "c").exists()


class FailsAfterCreating(BrokenFiles):
    """A file system that creates a file and reports an error."""

    def open(self, name: str, flags: int, folder_fd: int) -> int:
        os.close(super().open(name, flags, folder_fd))
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    files = BrokenFiles()
    for call in ("open", "pwritev", "sync", "close"):
        files.errors = {call: errno.ENOSPC}
        with pytest.raises(OSError, match="No space"):
            made(files, "fsync").write(root_of(tmp_path), "", PARTS, 0)
    with pytest.raises(OSError, match="Input/output"):
        made(FailsAfterCreating()).write(root_of(tmp_path), "", PARTS, 0)
    files.errors = {}
    files.short["pwritev"] = 0
    with pytest.raises(OSError, match="nothing written"):
        made(files).write(root_of(tmp_path), "", PARTS, 0)
    assert os.listdir(tmp_path) == []
