"""Verification of a segment that is intact, damaged in many ways, or gone."""

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.inspection.folder_view import FolderView
from kvtier.inspection.segments import (
    BadSegment,
    Verification,
    blocks_in,
    read_header,
    rules_of,
    verify,
)
from kvtier.inspection.spaces import Secrets, find_spaces
from kvtier.inspection.workers import Stopped, Throttle
from kvtier.testing.samples import sample_space
from kvtier.tiers.shared.format import Segment, header_bytes_for
from tests.inspection.stores import BLOCK_BYTES, NAME, StoreFolder, flip, keys
from tests.tiers.shared.broken import BrokenFiles

SLOT_BYTES = 12_288


def verified(
    store: StoreFolder, throttle: Throttle | None = None, files: BrokenFiles | None = None
) -> Verification:
    whole = FolderView(store.path)
    (space,) = find_spaces(whole, [NAME])
    whole.close()
    folder = FolderView(store.path, files)
    try:
        rules = rules_of(space.manifest, Secrets().checksum_of(space.manifest))
        first = keys(1)[0]
        return verify(folder, store.name(first), rules, first, throttle or Throttle())
    finally:
        folder.close()


def test_verify_reads_an_intact_segment_completely(store: StoreFolder) -> None:
    store.fill(keys(4))
    verdict = verified(store)
    assert isinstance(verdict, Segment)
    assert verdict.keys == tuple(keys(4))


def damage(name: str) -> Callable[[Path], None]:
    def version(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[8] = 2
        file.write_bytes(content)

    def shorten(file: Path) -> None:
        os.truncate(file, file.stat().st_size - 1)

    def lengthen(file: Path) -> None:
        os.truncate(file, file.stat().st_size + 4096)

    def replace(file: Path) -> None:
        file.unlink()
        os.mkfifo(file)

    def link(file: Path) -> None:
        target = file.rename(file.parent.parent / "elsewhere")
        file.symlink_to(target)

    return {
        "magic": lambda file: flip(file, 0),
        "header": lambda file: flip(file, 150),
        "padding": lambda file: flip(file, 4000),
        "empty": lambda file: file.write_bytes(b""),
        "version": version,
        "short": shorten,
        "long": lengthen,
        "payload": lambda file: flip(file, 4096 + 2 * SLOT_BYTES + 77),
        "pipe": replace,
        "link": link,
        "gone": lambda file: file.unlink(),
    }[name]


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("magic", "segment", "unlike a segment"),
        ("header", "segment", "checksum differs"),
        ("padding", "segment", "not zero"),
        ("empty", "segment", "fewer than any header has"),
        ("version", "newer", "version 2, of a newer kvtier"),
        ("short", "segment", "too short"),
        ("long", "segment", "too long"),
        ("payload", "checksum", "blocks damaged: 2 (1 of 4)"),
        ("pipe", "irregular", "not a regular file"),
        ("link", "irregular", "not a regular file"),
    ],
)
def test_verify_detects_damage(store: StoreFolder, name: str, kind: str, reason: str) -> None:
    store.fill(keys(4))
    damage(name)(store.file(keys(1)[0]))
    verdict = verified(store)
    assert isinstance(verdict, BadSegment)
    assert verdict.kind == kind
    assert reason in verdict.reason


def test_verify_detects_a_segment_of_another_key_space(store: StoreFolder) -> None:
    other = sample_space(block_bytes=BLOCK_BYTES, dtype="bfloat16")
    store.fill(keys(4))
    store.fill(keys(4), other)
    first = keys(1)[0]
    store.file(first, other).rename(store.file(first))
    verdict = verified(store)
    assert isinstance(verdict, BadSegment)
    assert "of another key space" in verdict.reason


def test_verify_detects_a_segment_under_another_name(store: StoreFolder) -> None:
    store.fill(keys(8))
    store.file(keys(1, 4)[0]).rename(store.file(keys(1)[0]))
    verdict = verified(store)
    assert isinstance(verdict, BadSegment)
    assert "but is named" in verdict.reason


def test_verify_of_removed_segment_is_none(store: StoreFolder) -> None:
    store.fill(keys(4))
    damage("gone")(store.file(keys(1)[0]))
    assert verified(store) is None


def test_verify_detects_every_flipped_payload_bit(store: StoreFolder) -> None:
    store.fill(keys(4))
    file = store.file(keys(1)[0])
    for at, is_seen in ((4096, True), (4096 + BLOCK_BYTES - 1, True), (4096 + BLOCK_BYTES, False)):
        flip(file, at)
        assert isinstance(verified(store), BadSegment) is is_seen
        flip(file, at)


def test_verify_reads_many_blocks_in_parts(store: StoreFolder) -> None:
    count = (4 << 20) // SLOT_BYTES + 10
    store.fill(keys(count), segment_blocks=count)
    assert isinstance(verified(store), Segment)
    file = store.file(keys(1)[0])
    flip(file, file.stat().st_size - SLOT_BYTES)
    verdict = verified(store)
    assert verdict == BadSegment("checksum", f"blocks damaged: {count - 1} (1 of {count})")


def test_verify_raises_stopped(store: StoreFolder) -> None:
    store.fill(keys(4))
    throttle = Throttle()
    throttle.stop()
    with pytest.raises(Stopped):
        verified(store, throttle)


def test_read_header_returns_the_header_only(store: StoreFolder) -> None:
    store.fill(keys(300), segment_blocks=300)
    folder = FolderView(store.path)
    try:
        (space,) = find_spaces(folder)
        rules = rules_of(space.manifest, Secrets().checksum_of(space.manifest))
        segment = read_header(folder, store.name(keys(1)[0]), rules, None)
        assert segment is not None
        assert len(segment.keys) == 300
        assert read_header(folder, store.name(keys(1, 9)[0]), rules, None) is None
    finally:
        folder.close()


@pytest.mark.parametrize("count", [1, 2, 77, 78, 79, 5000, 65_535])
@pytest.mark.parametrize("block_bytes", [1, 4096, 10_000])
def test_blocks_in_follows_from_the_length(count: int, block_bytes: int) -> None:
    slot_bytes = -(-block_bytes // 4096) * 4096
    file_bytes = header_bytes_for(count, 36) + count * slot_bytes
    assert blocks_in(file_bytes, 36, block_bytes) == count
    assert blocks_in(file_bytes + 1, 36, block_bytes) is None
    assert blocks_in(file_bytes - 1, 36, block_bytes) is None


def test_blocks_in_accepts_any_length() -> None:
    assert [blocks_in(size, 36, 10_000) for size in (0, 1, 4095, 4096, 8192)] == [None] * 5


@pytest.mark.parametrize("call", ["open", "stat_open", "preadv"])
@pytest.mark.parametrize(
    ("code", "kind"),
    [(errno.EIO, "unreadable"), (errno.EACCES, "unreadable"), (errno.ESTALE, None)],
)
def test_verify_reports_read_errors(
    store: StoreFolder, call: str, code: int, kind: str | None
) -> None:
    store.fill(keys(4))
    files = BrokenFiles()
    files.errors[call] = code
    verdict = verified(store, files=files)
    assert (verdict.kind if isinstance(verdict, BadSegment) else verdict) == kind


def test_close_error_does_not_affect_the_result(store: StoreFolder) -> None:
    store.fill(keys(4))
    files = BrokenFiles()
    files.errors["close"] = errno.EIO
    assert isinstance(verified(store, files=files), Segment)


def test_verify_detects_a_truncated_file(store: StoreFolder) -> None:
    store.fill(keys(4))
    files = BrokenFiles()
    real, reads = files.preadv, []

    def ends(fd: int, buffers, offset: int) -> int:
        reads.append(offset)
        return real(fd, buffers, offset) if offset == 0 else 0

    files.preadv = ends
    verdict = verified(store, files=files)
    assert isinstance(verdict, BadSegment)
    assert "ends in or after block 0" in verdict.reason
    assert reads == [0, 4096]


@given(
    at=st.integers(0, 4096 + 4 * SLOT_BYTES - 1),
    junk=st.binary(min_size=1, max_size=64),
    length=st.integers(0, 4096 + 5 * SLOT_BYTES),
)
def test_verify_returns_a_verdict_for_any_bytes(at: int, junk: bytes, length: int) -> None:
    with tempfile.TemporaryDirectory() as path:
        store = StoreFolder(Path(path))
        store.fill(keys(4))
        file = store.file(keys(1)[0])
        content = file.read_bytes()
        changed = content[:at] + junk + content[at + len(junk) :]
        os.truncate(file, 0)
        file.write_bytes(changed[:length].ljust(length, b"\0"))
        verdict = verified(store)
        counts = all(
            changed[4096 + i * SLOT_BYTES :][:BLOCK_BYTES]
            == content[4096 + i * SLOT_BYTES :][:BLOCK_BYTES]
            for i in range(4)
        )
        sound = len(changed) == length == len(content) and changed[:4096] == content[:4096]
        assert isinstance(verdict, Segment) is (sound and counts)
