"""Checkpoints: loaded whole or not at all."""

from pathlib import Path

import pytest

from kvtier.blocks.key import BlockKey
from kvtier.tiers.disk import checkpoint
from kvtier.tiers.disk.checkpoint import MAX_ROW_BYTES
from kvtier.tiers.disk.folder import CHECKPOINT_NAME, DiskFolder
from kvtier.tiers.disk.log import KEY_BYTES_MAX, Put
from kvtier.tiers.disk.slots import SlotMap
from tests.tiers.disk.slabs import key, plain_folder


@pytest.fixture
def folder(tmp_path: Path):  # type: ignore[no-untyped-def]
    opened = plain_folder(tmp_path / "slab")
    yield opened
    opened.close()


def loaded(folder: DiskFolder) -> tuple[int, list[Put]]:
    snapshot = checkpoint.load(folder)
    assert snapshot is not None
    return snapshot.generation, list(snapshot.puts)


def filled(puts: list[Put], count: int = 64) -> SlotMap:
    slots = SlotMap(count)
    for put in puts:
        slots.publish(put)
    return slots


PUTS = [
    Put(5, key(1), None, b"a" * 16),
    Put(0, BlockKey(b""), key(1), b"b" * 16),
    Put(63, BlockKey(b"x" * KEY_BYTES_MAX), BlockKey(b"y" * KEY_BYTES_MAX), b"c" * 16),
]


def test_load_returns_blocks_in_order(folder: DiskFolder) -> None:
    checkpoint.save(folder, filled(PUTS), 12)
    assert loaded(folder) == (12, PUTS)
    checkpoint.save(folder, filled([]), 13)
    assert loaded(folder) == (13, [])


def test_load_without_file_returns_none(folder: DiskFolder) -> None:
    assert checkpoint.load(folder) is None


def test_checkpoint_with_many_sections(folder: DiskFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_SECTION_ROWS", 7)
    puts = [Put(n, key(n), key(n - 1) if n % 3 else None, bytes([n]) * 16) for n in range(50)]
    checkpoint.save(folder, filled(puts), 1)
    assert loaded(folder) == (1, puts)


def test_row_stays_within_max_row_bytes(folder: DiskFolder) -> None:
    longest = [
        Put(n, BlockKey(bytes([n]) * KEY_BYTES_MAX), BlockKey(b"p" * KEY_BYTES_MAX), b"c" * 16)
        for n in range(64)
    ]
    checkpoint.save(folder, filled(longest), 1)
    size = (folder.path / CHECKPOINT_NAME).stat().st_size
    assert 0 <= size - 64 * MAX_ROW_BYTES < 100


def test_decode_rejects_every_flipped_bit_and_cut(folder: DiskFolder) -> None:
    checkpoint.save(folder, filled(PUTS), 12)
    raw = (folder.path / CHECKPOINT_NAME).read_bytes()
    assert checkpoint.decode(raw) is not None
    for bit in range(8 * len(raw)):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        assert checkpoint.decode(bytes(damaged)) is None
    for size in range(len(raw)):
        assert checkpoint.decode(raw[:size]) is None
    assert checkpoint.decode(raw + b"\0") is None
