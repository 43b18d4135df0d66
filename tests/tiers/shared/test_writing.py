"""Cutting batches into segments, and meeting other writers."""

from kvtier.blocks.key import BlockKey
from kvtier.testing.tiers import key
from tests.tiers.shared.segments import DONE, Tiers, keys, moves, read, write


def test_consecutive_blocks_lie_in_one_file(tiers: Tiers) -> None:
    tier, other = tiers.open(), tiers.open()
    blocks = keys(10)
    assert write(tier, blocks) == [DONE] * 10
    assert [file.stem for file in tiers.segments()] == [key(n).hex() for n in (0, 4, 8)]
    assert other.find(blocks) == [DONE] * 10
    assert read(other, blocks[::-1]) == [DONE] * 10
    assert read(other, [blocks[5], blocks[2], blocks[5]]) == [DONE] * 3


def test_the_late_writer_goes_on_behind_what_is_there(tiers: Tiers) -> None:
    tier, late = tiers.open(4), tiers.open(8)
    write(tier, keys(6))
    assert write(late, keys(10)) == [DONE] * 10
    assert len(tiers.segments()) == 3
    assert tiers.open().find(keys(10)) == [DONE] * 10


def test_blocks_of_two_chains_or_groups_never_share_a_file(tiers: Tiers) -> None:
    tier = tiers.open(8)
    other_group = BlockKey(key(2)[:-4] + (1).to_bytes(4, "big"))
    blocks = [key(0), key(1), other_group, key(50), key(51)]
    parents = [None, key(0), key(1), None, key(50)]
    assert tier.write_from(moves(blocks), parents) == [DONE] * 5
    assert len(tiers.segments()) == 3
    assert read(tiers.open(), [key(0), other_group, key(50)]) == [DONE] * 3


def test_a_block_that_stands_twice_in_a_batch_is_written_once(tiers: Tiers) -> None:
    tier = tiers.open(8)
    blocks = [key(0), key(1), key(0)]
    assert tier.write_from(moves(blocks), [None, key(0), key(1)]) == [DONE] * 3
    assert len(tiers.segments()) == 1
