"""Cutting batches into segments, and concurrent writers."""

import errno
import os
import stat

import numpy as np

from kvtier.blocks.key import BlockKey
from kvtier.testing.memory_store import MemoryStore
from kvtier.testing.tiers import key
from kvtier.tiers.shared.tier import StoreTier
from tests.tiers.shared.broken import BrokenFiles
from tests.tiers.shared.segments import DONE, FAILED, LAYOUT, SPACE, Tiers, keys, moves, read, write


def test_write_packs_consecutive_blocks_into_one_file(tiers: Tiers) -> None:
    tier, other = tiers.open(), tiers.open()
    blocks = keys(10)
    assert write(tier, blocks) == [DONE] * 10
    assert [file.stem for file in tiers.segments()] == [key(n).hex() for n in (0, 4, 8)]
    assert other.find(blocks) == [DONE] * 10
    assert read(other, blocks[::-1]) == [DONE] * 10
    assert read(other, [blocks[5], blocks[2], blocks[5]]) == [DONE] * 3


def test_write_continues_after_blocks_of_another_writer(tiers: Tiers) -> None:
    tier, late = tiers.open(4), tiers.open(8)
    write(tier, keys(6))
    assert write(late, keys(10)) == [DONE] * 10
    assert len(tiers.segments()) == 3
    assert tiers.open().find(keys(10)) == [DONE] * 10


class NamesNotDurable(BrokenFiles):
    """A file system that cannot make the names in a folder durable."""

    def sync(self, fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().sync(fd)


def test_write_of_existing_blocks_is_done_only_if_durable(tiers: Tiers) -> None:
    write(tiers.open(), keys(2))
    late = tiers.open(durability="fsync", files=NamesNotDurable())
    assert write(late, keys(2)) == [FAILED] * 2
    assert write(tiers.open(durability="fsync"), keys(2)) == [DONE] * 2


def test_write_separates_chains_and_groups(tiers: Tiers) -> None:
    tier = tiers.open(8)
    other_group = BlockKey(key(2)[:-4] + (1).to_bytes(4, "big"))
    blocks = [key(0), key(1), other_group, key(50), key(51)]
    parents = [None, key(0), key(1), None, key(50)]
    assert tier.write_from(moves(blocks), parents) == [DONE] * 5
    assert len(tiers.segments()) == 3
    assert read(tiers.open(), [key(0), other_group, key(50)]) == [DONE] * 3


def test_write_of_duplicate_block_stores_it_once(tiers: Tiers) -> None:
    tier = tiers.open(8)
    blocks = [key(0), key(1), key(0)]
    assert tier.write_from(moves(blocks), [None, key(0), key(1)]) == [DONE] * 3
    assert len(tiers.segments()) == 1


class ContradictoryStore(MemoryStore):
    """A store that reports a name as taken but finds no file, as a stale cache of names does."""

    def __init__(self) -> None:
        super().__init__()
        self.refusals = 0
        self.refused = 0

    def publish(self, name, parts) -> bool:
        if self.refused < self.refusals and name.endswith(".kvt"):
            self.refused += 1
            return False
        return super().publish(name, parts)


def test_write_gives_up_on_a_contradictory_store(tiers: Tiers) -> None:
    store = ContradictoryStore()
    tier = StoreTier("shared", store, LAYOUT, SPACE, segment_blocks=4, io_threads=1)
    store.refusals = 1_000
    assert write(tier, keys(2)) == [FAILED] * 2
    assert store.refused < 20, "each try writes the whole segment"
    store.refusals = store.refused + 1
    assert write(tier, keys(2)) == [DONE] * 2, "a single loss is the eviction of a winner"
    tier.close()


class ReplacedWinnerStore(MemoryStore):
    """A store in which a winner is evicted before it is read, and another one appears."""

    def __init__(self) -> None:
        super().__init__()
        self.has_lost = False
        self.comes: tuple[str, list[bytes]] | None = None

    def publish(self, name, parts) -> bool:
        if not self.has_lost and name.endswith(".kvt"):
            self.has_lost, self.comes = True, (name, [bytes(part) for part in parts])
            return False
        return super().publish(name, parts)

    def read(self, name, offset, buffers):
        found = super().read(name, offset, buffers)
        if found is None and self.comes is not None:
            (name, parts), self.comes = self.comes, None
            assert super().publish(name, [np.frombuffer(part, np.uint8) for part in parts])
        return found


def test_write_meets_a_winner_that_replaced_the_last_one(tiers: Tiers) -> None:
    store = ReplacedWinnerStore()
    tier = StoreTier("shared", store, LAYOUT, SPACE, segment_blocks=4, io_threads=1)
    assert write(tier, keys(2)) == [DONE] * 2
    assert store.has_lost
    assert store.comes is None
    tier.close()
