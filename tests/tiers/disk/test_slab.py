"""Segment files: allocated whole on demand, grown and cut with the capacity."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from kvtier.tiers.disk.folder import DiskFolder, lock_folder
from kvtier.tiers.disk.slab import Slab, folder_supports_direct_io
from tests.tiers.disk.slabs import SLOT_BYTES, BrokenFiles, blank, content


@pytest.fixture
def folder(tmp_path: Path):  # type: ignore[no-untyped-def]
    opened = lock_folder(tmp_path / "slab", BrokenFiles())
    yield opened
    opened.close()


def broken(folder: DiskFolder) -> BrokenFiles:
    assert isinstance(folder.files, BrokenFiles)
    return folder.files


def sizes(folder: DiskFolder) -> dict[str, int]:
    """Return the number of slots of each segment file."""
    return {
        name[-1]: folder.file_bytes(name) // SLOT_BYTES
        for name in folder.names()
        if name.startswith("segment-")
    }


def test_segment_is_allocated_whole_at_first_write(folder: DiskFolder) -> None:
    slab = Slab(folder, SLOT_BYTES, 10, 4, 0)
    assert sizes(folder) == {}
    assert slab.write(5, [content(1)]) == 1
    assert sizes(folder) == {"1": 4}
    assert slab.write(8, [content(2), content(3)]) == 2
    assert sizes(folder) == {"1": 4, "2": 2}
    assert os.stat(folder.path / "segment-00001").st_blocks * 512 >= 4 * SLOT_BYTES
    buffers = [blank(), blank()]
    assert slab.read(8, buffers) == 2
    assert np.array_equal(buffers[1], content(3))
    with pytest.raises(FileNotFoundError):
        slab.read(0, [blank()])
    slab.close()
    slab.close()


def test_trim_cuts_and_write_grows_with_capacity(folder: DiskFolder) -> None:
    for slots, expected in ((6, {"0": 4, "1": 2}), (9, {"0": 4, "1": 4, "2": 1}), (3, {"0": 3})):
        slab = Slab(folder, SLOT_BYTES, slots, 4, 0)
        slab.trim()
        for slot in range(slots):
            assert slab.write(slot, [content(slot)]) == 1
        assert sizes(folder) == expected
        slab.close()


def test_stored_slots_are_inside_bound_and_files(folder: DiskFolder) -> None:
    slab = Slab(folder, SLOT_BYTES, 10, 4, 0)
    slab.write(0, [content(0)])
    slab.write(9, [content(0)])
    os.truncate(folder.path / "segment-00000", 2 * SLOT_BYTES + 5)
    stored = slab.stored_slots()
    assert [slot for slot in range(20) if stored(slot)] == [0, 1, 8, 9]
    slab.close()


def test_failed_allocation_is_truncated(folder: DiskFolder) -> None:
    slab = Slab(folder, SLOT_BYTES, 4, 4, 0)
    broken(folder).short["allocate"] = SLOT_BYTES
    with pytest.raises(OSError, match="No space"):
        slab.write(0, [content(0)])
    assert sizes(folder) == {"0": 0}
    broken(folder).short.clear()
    assert slab.write(0, [content(0)]) == 1
    slab.close()


def test_short_reads_and_writes_are_continued(folder: DiskFolder) -> None:
    slab = Slab(folder, SLOT_BYTES, 4, 4, 0)
    broken(folder).short = {"pwritev": 1500, "preadv": 4097}
    assert slab.write(0, [content(n) for n in range(3)]) == 3
    buffers = [blank() for _ in range(3)]
    assert slab.read(0, buffers) == 3
    assert all(np.array_equal(buffer, content(n)) for n, buffer in enumerate(buffers))
    os.truncate(folder.path / "segment-00000", SLOT_BYTES + 9)
    assert slab.read(0, buffers) == 1
    slab.close()


def test_folder_supports_direct_io_probes_and_cleans_up(folder: DiskFolder) -> None:
    before = folder.names()
    folder_supports_direct_io(folder)
    assert folder.names() == before
    broken(folder).errors["open"] = errno.EINVAL
    assert not folder_supports_direct_io(folder)
    broken(folder).errors = {"preadv": errno.EIO}
    assert not folder_supports_direct_io(folder)
    broken(folder).errors.clear()
    broken(folder).short["preadv"] = 512
    assert not folder_supports_direct_io(folder)
    assert folder.names() == before
