"""Broken files are detected and quarantined."""

import os

import numpy as np
import pytest

from kvtier.blocks.checksum import HmacSha256
from kvtier.testing.memory_store import MemoryStore
from kvtier.testing.tiers import key
from kvtier.tiers.shared.tier import StoreTier
from tests.tiers.shared.segments import (
    CORRUPT,
    DONE,
    LAYOUT,
    MISSING,
    SPACE,
    Tiers,
    flip,
    keys,
    read,
    write,
)


@pytest.mark.parametrize("damage", ["truncate", "extend", "header", "empty", "text"])
def test_broken_file_is_quarantined(tiers: Tiers, damage: str) -> None:
    tier, other = tiers.open(), tiers.open()
    write(tier, keys(8))
    file = tiers.file_of(key(0))
    content = file.read_bytes()
    flipped = content[:150] + bytes([content[150] ^ 1]) + content[151:]
    file.write_bytes(
        {
            "truncate": content[:-1],
            "extend": content + b"\0",
            "header": flipped,
            "empty": b"",
            "text": b"not a segment" * 1000,
        }[damage]
    )
    assert other.find(keys(8)) == [CORRUPT] + [MISSING] * 7
    assert other.find(keys(8)) == [MISSING] * 8, "the broken file is out of the way"
    assert read(tier, keys(8))[:4] != [DONE] * 4, (
        "a tier that knew the segment must find out as well"
    )
    assert read(tier, keys(8))[4:] == [DONE] * 4
    assert len(tiers.quarantined()) == 1
    assert write(other, keys(8)) == [DONE] * 8
    assert read(other, keys(8)) == [DONE] * 8


def test_quarantine_is_bounded(tiers: Tiers) -> None:
    tier = tiers.open(1)
    write(tier, keys(20))
    for file in tiers.segments():
        flip(file, 4096)
    assert read(tier, keys(20)) == [CORRUPT] * 20
    assert len(tiers.quarantined()) == 16
    assert tiers.segments() == []


def test_fifo_in_place_of_a_segment_does_not_hang(tiers: Tiers) -> None:
    tier, other = tiers.open(), tiers.open()
    write(tier, keys(4))
    file = tiers.file_of(key(0))
    file.unlink()
    os.mkfifo(file)
    assert DONE not in other.find(keys(4))
    assert DONE not in read(tier, keys(4))
    assert DONE not in write(other, keys(4))


def test_segment_without_the_secret_is_corrupt(tiers: Tiers) -> None:
    store = MemoryStore()
    options = {"segment_blocks": 4, "io_threads": 1}
    keyed = StoreTier("shared", store, LAYOUT, SPACE, checksum=HmacSha256(b"s" * 32), **options)
    write(keyed, keys(4))
    plain = MemoryStore()
    write(StoreTier("shared", plain, LAYOUT, SPACE, **options), keys(4, 50))
    for entry in plain.list("").entries:
        if entry.name.endswith(".kvt"):
            buffer = np.zeros(entry.stat.size, np.uint8)
            plain.read(entry.name, 0, [buffer])
            store.publish(entry.name, [buffer])
    again = StoreTier("shared", store, LAYOUT, SPACE, checksum=HmacSha256(b"s" * 32), **options)
    assert again.find(keys(4)) == [DONE] * 4
    assert again.find(keys(4, 50)) == [CORRUPT] + [MISSING] * 3
    assert read(again, keys(4)) == [DONE] * 4
