"""Open files: short calls, refused O_DIRECT, ends of files."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from kvtier.testing.samples import blank, content, joined
from kvtier.tiers.base import Buffer
from kvtier.tiers.files import OpenFile, in_whole_pages
from tests.tiers.shared.broken import BrokenFiles

NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL
PARTS = [content(1, 8192), content(2, 4096), content(3, 12288)]


@pytest.fixture
def fd(tmp_path: Path):  # type: ignore[no-untyped-def]
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def blanks() -> list[Buffer]:
    return [blank(len(part)) for part in PARTS]


@pytest.mark.parametrize("direct", [0, os.O_DIRECT], ids=["cached", "direct"])
@pytest.mark.parametrize("step_bytes", [4096, 8192, 5000, 100_000])
def test_open_file_continues_short_calls(
    tmp_path: Path, fd: int, direct: int, step_bytes: int
) -> None:
    files = BrokenFiles()
    files.short = {"preadv": step_bytes, "pwritev": step_bytes}
    handle = OpenFile(files, "file", NEW | direct, fd)
    handle.write(PARTS)
    back = blanks()
    assert handle.read(0, back, 24576) == 24576
    handle.close()
    assert (tmp_path / "file").read_bytes() == joined(PARTS) == joined(back)
    assert files.calls["pwritev"] >= -(-24576 // step_bytes)


def test_open_file_splits_more_buffers_than_iov_max(tmp_path: Path, fd: int) -> None:
    files = BrokenFiles()
    handle = OpenFile(files, "file", NEW, fd)
    parts = [content(number, 5) for number in range(2100)]
    handle.write(parts)
    assert files.calls["pwritev"] == 3
    back = [blank(5) for _ in parts]
    assert handle.read(0, back, 5 * 2100) == 5 * 2100
    handle.close()
    assert joined(back) == joined(parts) == (tmp_path / "file").read_bytes()


def test_open_file_falls_back_when_direct_io_refuses_memory(tmp_path: Path, fd: int) -> None:
    files = BrokenFiles()
    files.refuses_direct = True
    handle = OpenFile(files, "file", NEW | os.O_DIRECT, fd)
    handle.write(PARTS)
    handle.close()
    handle = OpenFile(files, "file", os.O_RDONLY | os.O_DIRECT, fd)
    back = blanks()
    assert handle.read(0, back, 24576) == 24576
    handle.close()
    assert joined(back) == joined(PARTS)
    assert files.calls["use_page_cache"] == 2


class DirectRefusedAtOpen(BrokenFiles):
    """A file system that creates the file and then refuses the flag, as some kernels do."""

    def open(self, name: str, flags: int, folder_fd: int) -> int:
        fd = super().open(name, flags, folder_fd)
        if flags & os.O_DIRECT:
            os.close(fd)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return fd


def test_open_file_falls_back_when_direct_io_is_refused_at_open(tmp_path: Path, fd: int) -> None:
    handle = OpenFile(DirectRefusedAtOpen(), "file", NEW | os.O_DIRECT, fd)
    handle.write(PARTS)
    handle.close()
    assert (tmp_path / "file").read_bytes() == joined(PARTS)


def test_open_file_raises_other_errors(fd: int) -> None:
    files = BrokenFiles()
    files.errors["open"] = errno.EINVAL
    with pytest.raises(OSError, match="Invalid"):
        OpenFile(files, "file", NEW, fd)
    files.errors.clear()
    handle = OpenFile(files, "file", NEW, fd)
    for code in (errno.EINVAL, errno.EIO):
        files.errors["pwritev"] = code
        with pytest.raises(OSError, match=os.strerror(code)):
            handle.write(PARTS)
    files.errors.clear()
    files.short["pwritev"] = 0
    with pytest.raises(OSError, match="nothing written"):
        handle.write(PARTS)
    handle.close()


def test_open_file_read_stops_at_end_of_file(fd: int) -> None:
    handle = OpenFile(BrokenFiles(), "file", NEW, fd)
    handle.write([content(1, 10_000)])
    back = blank(8192)
    assert handle.read(4096, [back], 8192) == 10_000 - 4096
    assert handle.read(20_000, [back], 8192) == 0
    handle.close()


def test_in_whole_pages_checks_offset_and_lengths() -> None:
    page = np.zeros(4096, np.uint8)
    assert in_whole_pages(0, [])
    assert in_whole_pages(8192, [page, page[:0], page])
    assert not in_whole_pages(1, [page])
    assert not in_whole_pages(0, [page, page[:-1]])
