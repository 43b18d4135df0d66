"""The log: whatever happens to the file, decoding it returns a prefix of the records."""

import errno
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.blocks.key import BlockKey
from kvtier.tiers.disk.folder import DiskFolder, lock_folder
from kvtier.tiers.disk.log import (
    HEADER_BYTES,
    KEY_BYTES_MAX,
    MAX_FRAME_BYTES,
    Delete,
    Log,
    Put,
    Record,
    decode,
    delete_frame,
    put_frame,
)
from tests.tiers.disk.slabs import BrokenFiles, key

RECORDS: list[Record] = [
    Put(0, key(1), None, b"a" * 16),
    Put(7, key(2), key(1), b"b" * 16),
    Delete(0),
    Put(1 << 31, BlockKey(b"x" * KEY_BYTES_MAX), BlockKey(b"y" * KEY_BYTES_MAX), b"c" * 16),
    Put(3, BlockKey(b""), BlockKey(b""), bytes(16)),
]


def frame(record: Record, generation: int) -> bytes:
    if isinstance(record, Put):
        return put_frame(record, generation)
    return delete_frame(record.slot, generation)


@pytest.fixture
def folder(tmp_path: Path):  # type: ignore[no-untyped-def]
    opened = lock_folder(tmp_path / "slab", BrokenFiles())
    yield opened
    opened.close()


def written(folder: DiskFolder, generation: int = 5) -> tuple[bytes, list[int]]:
    """Return the bytes of a log of RECORDS, and the end of each frame."""
    log = Log(folder)
    log.restart(generation)
    ends = []
    for record in RECORDS:
        log.append(frame(record, generation))
        ends.append(log.size_bytes)
    log.close()
    log.close()
    return (folder.path / "log").read_bytes(), ends


def test_decode_returns_appended_records(folder: DiskFolder) -> None:
    raw, ends = written(folder)
    history = decode(raw)
    assert history == (5, RECORDS, ends[-1])
    assert max(len(frame(record, 5)) for record in RECORDS) == MAX_FRAME_BYTES


def test_decode_of_cut_log_returns_frames_before_cut(folder: DiskFolder) -> None:
    raw, ends = written(folder)
    for size in range(len(raw)):
        history = decode(raw[:size])
        if size < HEADER_BYTES:
            assert history is None
            continue
        whole = [end for end in ends if end <= size]
        assert history == (5, RECORDS[: len(whole)], whole[-1] if whole else HEADER_BYTES)


def test_decode_stops_before_flipped_bit(folder: DiskFolder) -> None:
    raw, ends = written(folder)
    for bit in range(8 * len(raw)):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        history = decode(bytes(damaged))
        if bit // 8 < HEADER_BYTES:
            assert history is None
        else:
            assert history is not None
            assert history.records == RECORDS[: sum(end <= bit // 8 for end in ends)]


@given(st.binary(max_size=400))
def test_decode_ignores_garbage_after_header(tail: bytes) -> None:
    head = log_header(9)
    history = decode(head + tail)
    assert history == (9, [], HEADER_BYTES)


def log_header(generation: int) -> bytes:
    import struct

    import xxhash

    magic = b"kvtlog1\n"
    return struct.pack("<8sQQ", magic, generation, xxhash.xxh3_64_intdigest(magic, generation))


def test_frames_of_another_generation_are_rejected(folder: DiskFolder) -> None:
    raw, _ = written(folder, 5)
    assert decode(log_header(6) + raw[HEADER_BYTES:]) == (6, [], HEADER_BYTES)


def test_restart_and_cut_change_the_file(folder: DiskFolder) -> None:
    raw, ends = written(folder)
    log = Log(folder)
    assert log.read() == raw
    log.cut(ends[1])
    log.append(delete_frame(9, 5))
    log.close()
    history = decode((folder.path / "log").read_bytes())
    assert history is not None
    assert history.records == [*RECORDS[:2], Delete(9)]
    log = Log(folder)
    log.restart(8)
    log.sync()
    log.close()
    assert (folder.path / "log").read_bytes() == log_header(8)


def test_failed_append_leaves_no_torn_frame(folder: DiskFolder) -> None:
    files = folder.files
    assert isinstance(files, BrokenFiles)
    log = Log(folder)
    log.restart(5)
    log.append(frame(RECORDS[0], 5))
    before = (folder.path / "log").read_bytes()
    files.short["write"] = 30
    with pytest.raises(OSError, match="30 of"):
        log.append(frame(RECORDS[1], 5))
    assert (folder.path / "log").read_bytes() == before
    files.errors["truncate"] = errno.EIO
    with pytest.raises(OSError, match="30 of"):
        log.append(frame(RECORDS[1], 5))
    files.short.clear()
    with pytest.raises(OSError, match="Input/output"):
        log.append(frame(RECORDS[1], 5))
    files.errors.clear()
    log.append(frame(RECORDS[2], 5))
    log.close()
    assert decode((folder.path / "log").read_bytes()) == (
        5,
        [RECORDS[0], RECORDS[2]],
        log.size_bytes,
    )
