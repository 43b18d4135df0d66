"""Every fault damages the file or changes the answer that it is meant for."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvtier_bench.faults.faults import FaultKind, Faults
from kvtier_bench.faults.files import FaultyFiles

DATA = np.arange(200, dtype=np.uint8)


class Folder:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.faults = Faults(3)
        self.files = FaultyFiles(self.faults, root)
        self.fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)

    def write(self, name: str = "a.kvt") -> bytes:
        fd = self.files.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, self.fd)
        self.files.pwritev(fd, [DATA], 0)
        self.files.close(fd)
        return (self.root / name).read_bytes()

    def read(self, name: str = "a.kvt") -> bytes:
        fd = self.files.open(name, os.O_RDONLY, self.fd)
        buffer = np.zeros(400, np.uint8)
        try:
            return bytes(buffer[: self.files.preadv(fd, [buffer], 0)])
        finally:
            self.files.close(fd)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    (tmp_path / "kv").mkdir()
    folder = Folder(tmp_path / "kv")
    yield folder
    os.close(folder.fd)


def test_files_without_fault_behave_as_the_file_system(folder: Folder) -> None:
    assert folder.write() == bytes(DATA)
    assert folder.read() == bytes(DATA)
    assert [entry.name for entry in folder.files.entries(".", folder.fd)] == ["a.kvt"]


@pytest.mark.parametrize(
    "fault",
    [
        FaultKind.TORN_WRITE,
        FaultKind.BIT_FLIP,
        FaultKind.TRUNCATED,
        FaultKind.OVER_LONG,
        FaultKind.PARTIAL,
    ],
)
def test_write_faults_damage_the_file(folder: Folder, fault: FaultKind) -> None:
    folder.faults.arm(fault, 1.0, limit=1)
    try:
        kept = folder.write()
    except OSError:
        kept = b""
    assert kept != bytes(DATA)
    assert folder.faults.happened == 1


@pytest.mark.parametrize("fault", [FaultKind.BIT_FLIP, FaultKind.TRUNCATED, FaultKind.OVER_LONG])
def test_read_faults_return_other_bytes(folder: Folder, fault: FaultKind) -> None:
    folder.write()
    folder.faults.arm(fault, 1.0, limit=1)
    assert folder.read() != bytes(DATA)
    folder.faults.disarm()
    assert (folder.read() == bytes(DATA)) == (fault is FaultKind.BIT_FLIP)


def test_stale_listing_shows_removed_files(folder: Folder) -> None:
    folder.write()
    shown = folder.files.entries(".", folder.fd)
    folder.files.stat("a.kvt", folder.fd)
    folder.files.unlink("a.kvt", folder.fd)
    folder.faults.arm(FaultKind.STALE_LISTING, 1.0)
    assert folder.files.entries(".", folder.fd) == shown
    assert folder.files.stat("a.kvt", folder.fd).st_size == len(DATA)
    with pytest.raises(OSError, match=r"\[Errno"):
        folder.files.open("a.kvt", os.O_RDONLY, folder.fd)


def test_folder_removed_fault_removes_folders(folder: Folder) -> None:
    (folder.root / "space" / "blocks").mkdir(parents=True)
    folder.faults.arm(FaultKind.FOLDER_REMOVED, 1.0, limit=1)
    folder.files.entries(".", folder.fd)
    assert not (folder.root / "space" / "blocks").exists()


def test_clock_step_changes_a_files_times(folder: Folder) -> None:
    folder.write()
    before = (folder.root / "a.kvt").stat().st_mtime
    folder.faults.arm(FaultKind.CLOCK_STEP, 1.0)
    folder.read()
    assert (folder.root / "a.kvt").stat().st_mtime != before
