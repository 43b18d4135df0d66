"""Verification of payloads, replaced files, and the bound of known segments."""

from kvtier.testing.tiers import key
from tests.tiers.shared.segments import (
    CORRUPT,
    DONE,
    MISSING,
    SLOT_BYTES,
    Tiers,
    flip,
    keys,
    read,
    write,
)


def test_read_reports_only_the_damaged_block_corrupt(tiers: Tiers) -> None:
    tier = tiers.open()
    write(tier, keys(4))
    flip(tiers.file_of(key(0)), 4096 + 2 * SLOT_BYTES)
    assert read(tier, keys(4)) == [DONE, DONE, CORRUPT, DONE]
    assert len(tiers.quarantined()) == 1
    assert read(tier, keys(4)) == [MISSING] * 4


def test_read_of_replaced_file_is_missing_not_corrupt(tiers: Tiers) -> None:
    tier, other = tiers.open(), tiers.open()
    chain = [key(0), *keys(3, 100)]
    write(tier, keys(4))
    tiers.file_of(key(0)).unlink()
    assert write(other, chain) == [DONE] * 4
    assert read(tier, [key(0), key(1), key(2)])[1:] == [MISSING] * 2
    assert tiers.quarantined() == []
    assert tier.find(chain) == [DONE] * 4
    assert read(tier, chain) == [DONE] * 4


def test_known_segments_are_bounded(tiers: Tiers) -> None:
    tier = tiers.open(1, known_blocks=4)
    write(tier, keys(10))
    assert sum(tier.contains(keys(10))) == 4
    assert read(tier, keys(10)) == [DONE] * 10
