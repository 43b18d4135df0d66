"""One segment, sound, damaged in every way, or gone."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kvtier.inspection.folder import Folder
from kvtier.inspection.pace import Pace, Stopped
from kvtier.inspection.segments import Broken, Verdict, blocks_in, read_header, rules_of, verify
from kvtier.inspection.spaces import Secrets, find_spaces
from kvtier.testing.spaces import sample_space
from kvtier.tiers.shared.format import Segment, header_bytes_for
from tests.inspection.stores import BLOCK_BYTES, NAME, StoreFolder, flip, keys

SLOT_BYTES = 12_288


def verified(store: StoreFolder, pace: Pace | None = None, block: int = 0) -> Verdict:
    folder = Folder(store.path)
    try:
        (space,) = find_spaces(folder, [NAME])
        rules = rules_of(space.manifest, Secrets().fitting(space.manifest))
        first = keys(1, block)[0]
        return verify(folder, store.name(first), rules, first, pace or Pace())
    finally:
        folder.close()


def test_a_sound_one_is_read_whole(store: StoreFolder) -> None:
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
        ("magic", "segment", "does not begin as a segment"),
        ("header", "segment", "checksum differs"),
        ("padding", "segment", "not zero"),
        ("empty", "segment", "less than any header"),
        ("version", "newer", "version 2, of a newer kvtier"),
        ("short", "segment", "too short"),
        ("long", "segment", "too long"),
        ("payload", "checksum", "blocks damaged: 2 (1 of 4)"),
        ("pipe", "irregular", "no regular file"),
        ("link", "irregular", "no regular file"),
    ],
)
def test_damage_is_found(store: StoreFolder, name: str, kind: str, reason: str) -> None:
    store.fill(keys(4))
    damage(name)(store.file(keys(1)[0]))
    verdict = verified(store)
    assert isinstance(verdict, Broken)
    assert verdict.kind == kind
    assert reason in verdict.reason


def test_one_of_another_key_space_is_broken(store: StoreFolder) -> None:
    other = sample_space(block_bytes=BLOCK_BYTES, dtype="bfloat16")
    store.fill(keys(4))
    store.fill(keys(4), other)
    first = keys(1)[0]
    store.file(first, other).rename(store.file(first))
    verdict = verified(store)
    assert isinstance(verdict, Broken)
    assert "of another key space" in verdict.reason


def test_one_under_another_name_is_broken(store: StoreFolder) -> None:
    store.fill(keys(8))
    store.file(keys(1, 4)[0]).rename(store.file(keys(1)[0]))
    verdict = verified(store)
    assert isinstance(verdict, Broken)
    assert "but is named" in verdict.reason


def test_one_that_vanished_is_nobodys_fault(store: StoreFolder) -> None:
    store.fill(keys(4))
    damage("gone")(store.file(keys(1)[0]))
    assert verified(store) is None


def test_every_flipped_payload_bit_is_seen_and_the_rest_means_nothing(store: StoreFolder) -> None:
    store.fill(keys(4))
    file = store.file(keys(1)[0])
    for at, is_seen in ((4096, True), (4096 + BLOCK_BYTES - 1, True), (4096 + BLOCK_BYTES, False)):
        flip(file, at)
        assert isinstance(verified(store), Broken) is is_seen
        flip(file, at)


def test_many_blocks_are_read_in_parts(store: StoreFolder) -> None:
    count = (4 << 20) // SLOT_BYTES + 10
    store.fill(keys(count), segment_blocks=count)
    assert isinstance(verified(store), Segment)
    file = store.file(keys(1)[0])
    flip(file, file.stat().st_size - SLOT_BYTES)
    verdict = verified(store)
    assert verdict == Broken("checksum", f"blocks damaged: {count - 1} (1 of {count})")


def test_a_stop_is_heard(store: StoreFolder) -> None:
    store.fill(keys(4))
    pace = Pace()
    pace.stop()
    with pytest.raises(Stopped):
        verified(store, pace)


def test_a_header_alone_can_be_read(store: StoreFolder) -> None:
    store.fill(keys(300), segment_blocks=300)
    folder = Folder(store.path)
    try:
        (space,) = find_spaces(folder)
        rules = rules_of(space.manifest, Secrets().fitting(space.manifest))
        segment = read_header(folder, store.name(keys(1)[0]), rules, None)
        assert segment is not None
        assert len(segment.keys) == 300
        assert read_header(folder, store.name(keys(1, 9)[0]), rules, None) is None
    finally:
        folder.close()


@pytest.mark.parametrize("count", [1, 2, 77, 78, 79, 5000, 65_535])
@pytest.mark.parametrize("block_bytes", [1, 4096, 10_000])
def test_a_length_tells_how_many_blocks_there_are(count: int, block_bytes: int) -> None:
    slot_bytes = -(-block_bytes // 4096) * 4096
    file_bytes = header_bytes_for(count, 36) + count * slot_bytes
    assert blocks_in(file_bytes, 36, block_bytes) == count
    assert blocks_in(file_bytes + 1, 36, block_bytes) is None
    assert blocks_in(file_bytes - 1, 36, block_bytes) is None


def test_no_length_is_too_small() -> None:
    assert [blocks_in(size, 36, 10_000) for size in (0, 1, 4095, 4096, 8192)] == [None] * 5
