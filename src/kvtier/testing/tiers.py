"""The contract suite for tiers.

The cache relies on every sentence of `kvtier.tiers.base.Tier`. Each is a test here, for the tiers
of kvtier and for those of others:

    class TestMine(TierContract):
        def make_tier(self, folder: Path, capacity_blocks: int) -> Tier:
            return Mine(folder, self.layout, capacity_blocks)

Two hooks bypass the tier: `corrupt` changes stored bytes, `reopen` acts as a new process. Needs
pytest. No test depends on time.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from kvtier.blocks.key import BlockKey
from kvtier.blocks.layout import BlockLayout
from kvtier.clock import seeded
from kvtier.testing.samples import aligned
from kvtier.tiers.base import BlockMove, Buffer, Outcome, SharedTier, StoredBlock, Tier

_DONE, _MISSING = Outcome.DONE, Outcome.MISSING
_GUARD = 0xA5


def key(number: int) -> BlockKey:
    """Return a key like an engine's: 32 bytes of hash and a 4-byte group index."""
    return BlockKey(number.to_bytes(4, "big") * 8 + bytes(4))


def pattern(block: BlockKey, layout: BlockLayout) -> Buffer:
    """Return the bytes that these tests store under `block`: random, but a function of the key."""
    payload = seeded(int.from_bytes(block, "big")).randbytes(layout.slot_bytes)
    return aligned(np.frombuffer(payload, np.uint8))


class TierContract(ABC):
    """The tests of a tier: subclass it, implement `make_tier`, and run pytest."""

    layout: ClassVar[BlockLayout] = BlockLayout(block_bytes=10_000, tokens_per_block=16)
    """The payload does not fill its slot, so that a tier that confuses the two fails."""

    @abstractmethod
    def make_tier(self, folder: Path, capacity_blocks: int) -> Tier:
        """Return a tier of exactly `capacity_blocks`; for a used `folder`, the same tier again."""

    def corrupt(self, tier: Tier, folder: Path, block: BlockKey) -> None:
        """Flip one bit of the stored payload of `block`, bypassing the tier."""
        pytest.skip("this tier does not let the suite change its stored bytes")

    def reopen(self, tier: Tier, folder: Path, capacity_blocks: int) -> Tier:
        """Close the tier and open it again as a new process would."""
        if not tier.capabilities.persistent:
            pytest.skip("this tier does not outlive its process")
        tier.close()
        return self.make_tier(folder, capacity_blocks)

    @pytest.fixture
    def tier(self, tmp_path: Path) -> Iterator[Tier]:
        """A tier of 64 blocks, closed at the end of the test."""
        tier = self.make_tier(tmp_path, 64)
        yield tier
        tier.close()

    def write(self, tier: Tier, blocks: Sequence[BlockKey]) -> list[Outcome]:
        """Store the pattern of each block, chained in order."""
        parents = [None, *blocks[:-1]][: len(blocks)]
        return tier.write_from(
            [BlockMove(each, pattern(each, self.layout)) for each in blocks], parents
        )

    def read(self, tier: Tier, blocks: Sequence[BlockKey]) -> list[Outcome]:
        """Read the blocks, and compare every payload that is DONE with its pattern."""
        moves = [BlockMove(each, self.empty()) for each in blocks]
        outcomes = tier.read_into(moves)
        assert len(outcomes) == len(blocks)
        for move, outcome in zip(moves, outcomes, strict=True):
            if outcome is _DONE:
                stored = pattern(move.key, self.layout)
                size = self.layout.block_bytes
                assert np.array_equal(move.buffer[:size], stored[:size]), "wrong bytes are DONE"
        return outcomes

    def empty(self) -> Buffer:
        """Return a slot of memory with no useful content."""
        return aligned(np.full(self.layout.slot_bytes, 0xEE, np.uint8))

    def scanned(self, tier: Tier) -> list[StoredBlock]:
        """Return the blocks of all pages of a scan."""
        page = tier.scan()
        blocks = list(page.blocks)
        while page.cursor is not None:
            page = tier.scan(page.cursor)
            blocks += page.blocks
        return blocks

    def test_tier_implements_protocol_and_declares_capabilities(self, tier: Tier) -> None:
        """The declared capacity is the one asked for."""
        assert isinstance(tier, Tier)
        assert tier.capabilities.capacity_blocks == 64
        assert tier.capabilities.io_threads >= 1
        assert tier.capabilities.name

    def test_written_bytes_are_read_back_exactly(self, tier: Tier) -> None:
        """Also in another order, and twice in one batch."""
        blocks = [key(number) for number in range(20)]
        assert self.write(tier, blocks) == [_DONE] * 20
        assert tier.contains(blocks) == [True] * 20
        assert self.read(tier, blocks[::-1]) == [_DONE] * 20
        assert self.read(tier, [blocks[3], blocks[3]]) == [_DONE] * 2

    def test_empty_batch_has_no_outcomes(self, tier: Tier) -> None:
        """Every method returns an empty list."""
        assert tier.contains([]) == []
        assert tier.read_into([]) == []
        assert tier.write_from([], []) == []
        assert tier.delete([]) == []
        assert self.scanned(tier) == []

    def test_unknown_block_is_missing(self, tier: Tier) -> None:
        """Never an exception and never DONE."""
        assert tier.contains([key(1)]) == [False]
        assert self.read(tier, [key(1)]) == [_MISSING]
        assert tier.delete([key(1)]) == [_MISSING]

    def test_deleted_block_is_missing_and_may_be_written_again(self, tier: Tier) -> None:
        """Also after it was deleted twice."""
        self.write(tier, [key(1), key(2)])
        assert tier.delete([key(1), key(1)]) == [_DONE, _MISSING]
        assert tier.contains([key(1), key(2)]) == [False, True]
        assert self.read(tier, [key(1), key(2)]) == [_MISSING, _DONE]
        assert self.write(tier, [key(1)]) == [_DONE]
        assert self.read(tier, [key(1)]) == [_DONE]

    def test_write_of_held_block_keeps_its_bytes(self, tier: Tier) -> None:
        """Writing a key that is held is DONE and changes nothing."""
        self.write(tier, [key(1)])
        assert tier.write_from([BlockMove(key(1), self.empty())], [None]) == [_DONE]
        assert self.read(tier, [key(1)]) == [_DONE]

    def test_outcomes_are_in_the_order_of_the_batch(self, tier: Tier) -> None:
        """In a batch with missing blocks, the others are served."""
        blocks = [key(number) for number in range(12)]
        held = [number % 3 != 1 for number in range(12)]
        self.write(tier, [block for block, is_held in zip(blocks, held, strict=True) if is_held])
        expected = [_DONE if is_held else _MISSING for is_held in held]
        assert tier.contains(blocks) == held
        assert self.read(tier, blocks) == expected
        assert tier.delete(blocks) == expected

    def test_buffer_may_be_reused_after_write(self, tier: Tier) -> None:
        """The tier keeps no reference to the caller's buffer."""
        buffer = pattern(key(1), self.layout)
        assert tier.write_from([BlockMove(key(1), buffer)], [None]) == [_DONE]
        buffer.fill(0)
        assert self.read(tier, [key(1)]) == [_DONE]

    def test_write_does_not_change_the_buffer(self, tier: Tier) -> None:
        """Other threads may read the slot while it is written out."""
        buffer = pattern(key(1), self.layout)
        tier.write_from([BlockMove(key(1), buffer)], [None])
        assert np.array_equal(buffer, pattern(key(1), self.layout))

    def test_read_stays_inside_the_buffer(self, tier: Tier) -> None:
        """The neighbors of a slot in the arena hold other blocks."""
        self.write(tier, [key(1), key(2)])
        room = aligned(np.full(3 * self.layout.slot_bytes, _GUARD, np.uint8))
        before, slot, after = np.split(room, 3)
        assert tier.read_into([BlockMove(key(1), slot)]) == [_DONE]
        assert (before == _GUARD).all()
        assert (after == _GUARD).all()

    def test_scan_reports_every_block_once_with_its_parent(self, tmp_path: Path) -> None:
        """Over as many pages as needed, oldest first, without deleted blocks.

        A shared tier has no order, because other processes write to it.
        """
        tier = self.make_tier(tmp_path, 700)
        blocks = [key(number) for number in range(600)]
        for start in range(0, 600, 100):
            assert self.write(tier, blocks[start : start + 100]) == [_DONE] * 100
        tier.delete(blocks[250:350])
        left = blocks[:250] + blocks[350:]
        scanned = self.scanned(tier)
        is_shared = tier.capabilities.shared
        tier.close()
        parents = dict(scanned)
        assert sorted(stored.key for stored in scanned) == sorted(left)
        assert is_shared or [stored.key for stored in scanned] == left
        assert parents[blocks[0]] is None
        assert parents[blocks[100]] is None
        assert parents[blocks[101]] == blocks[100]
        assert parents[blocks[599]] == blocks[598]

    def test_write_to_full_tier_fails_until_blocks_are_deleted(self, tmp_path: Path) -> None:
        """What does not fit is FAILED and nothing is evicted for it."""
        tier = self.make_tier(tmp_path, 8)
        if tier.capabilities.shared:
            tier.close()
            pytest.skip("the capacity of a shared tier is bounded by the evictor")
        blocks = [key(number) for number in range(10)]
        assert self.write(tier, blocks) == [_DONE] * 8 + [Outcome.FAILED] * 2
        assert tier.contains(blocks) == [True] * 8 + [False] * 2
        assert self.write(tier, blocks[:1]) == [_DONE]
        assert tier.delete(blocks[:2]) == [_DONE] * 2
        assert self.write(tier, blocks[8:]) == [_DONE] * 2
        assert self.read(tier, blocks) == [_MISSING] * 2 + [_DONE] * 8
        tier.close()

    def test_repeated_write_and_delete_leak_no_space(self, tmp_path: Path) -> None:
        """The space of deleted blocks is used again."""
        tier = self.make_tier(tmp_path, 8)
        for turn in range(40):
            blocks = [key(8 * turn + number) for number in range(8)]
            assert self.write(tier, blocks) == [_DONE] * 8
            assert self.read(tier, blocks) == [_DONE] * 8
            assert tier.delete(blocks) == [_DONE] * 8
        assert self.scanned(tier) == []
        tier.close()

    def test_concurrent_operations_never_show_wrong_bytes(self, tier: Tier) -> None:
        """Four threads read, write and delete the same few blocks; every DONE read is right."""
        with ThreadPoolExecutor(4) as threads:
            found = sum(threads.map(lambda seed: self._rummage(tier, seed), range(4)))
        assert found > 0
        blocks = [stored.key for stored in self.scanned(tier)]
        assert len(set(blocks)) == len(blocks)
        assert self.read(tier, blocks) == [_DONE] * len(blocks)

    def _rummage(self, tier: Tier, seed: int) -> int:
        rng = seeded(seed)
        found = 0
        for _ in range(150):
            blocks = [key(number) for number in rng.sample(range(24), 4)]
            verb = rng.choice(["read", "read", "write", "delete"])
            if verb == "read":
                found += self.read(tier, blocks).count(_DONE)
            elif verb == "write":
                assert self.write(tier, blocks) == [_DONE] * 4
            else:
                assert set(tier.delete(blocks)) <= {_DONE, _MISSING}
        return found

    def test_closed_tier_returns_no_done_and_raises_nothing(self, tmp_path: Path) -> None:
        """After `close` twice, every method returns one outcome per block, none DONE."""
        tier = self.make_tier(tmp_path, 8)
        self.write(tier, [key(1)])
        tier.close()
        tier.close()
        buffer = self.empty()
        assert len(tier.contains([key(1), key(2)])) == 2
        for outcomes in (
            tier.read_into([BlockMove(key(1), buffer), BlockMove(key(2), buffer)]),
            tier.write_from([BlockMove(key(3), buffer), BlockMove(key(4), buffer)], [None, None]),
            tier.delete([key(1), key(2)]),
        ):
            assert len(outcomes) == 2
            assert _DONE not in outcomes
        tier.scan()

    def test_changed_bytes_are_corrupt_then_missing(self, tier: Tier, tmp_path: Path) -> None:
        """A block with a flipped bit is removed and never DONE; its neighbors are served."""
        self.write(tier, [key(1), key(2), key(3)])
        self.corrupt(tier, tmp_path, key(2))
        assert self.read(tier, [key(1), key(2), key(3)]) == [_DONE, Outcome.CORRUPT, _DONE]
        assert self.read(tier, [key(2)]) == [_MISSING]
        assert tier.contains([key(2)]) == [False]
        assert self.write(tier, [key(2)]) == [_DONE]
        assert self.read(tier, [key(2)]) == [_DONE]

    def test_blocks_survive_reopening(self, tmp_path: Path) -> None:
        """The same blocks, bytes and parents; deleted blocks stay away."""
        tier = self.make_tier(tmp_path, 16)
        blocks = [key(number) for number in range(10)]
        self.write(tier, blocks)
        tier.delete(blocks[7:])
        tier = self.reopen(tier, tmp_path, 16)
        assert self.read(tier, blocks) == [_DONE] * 7 + [_MISSING] * 3
        assert dict(self.scanned(tier)) == dict(zip(blocks[:7], [None, *blocks[:6]], strict=True))
        more = [key(100 + number) for number in range(9)]
        assert self.write(tier, more) == [_DONE] * 9
        assert self.read(tier, blocks[:7] + more) == [_DONE] * 16
        tier.close()


class SharedTierContract(TierContract):
    """The tests of `TierContract`, and those for several processes that use one place.

    For a folder in use, `make_tier` returns another tier on the same storage, as another process or
    host would open it.
    """

    @pytest.fixture
    def other(self, tier: Tier, tmp_path: Path) -> Iterator[SharedTier]:
        """Another engine's tier on the storage of `tier`."""
        other = self.make_tier(tmp_path, 64)
        assert isinstance(other, SharedTier)
        yield other
        other.close()

    def test_find_and_read_blocks_of_another_writer(self, tier: Tier, other: SharedTier) -> None:
        """`find` reports the leading blocks of the chain, up to the first missing one."""
        blocks = [key(number) for number in range(20)]
        assert other.find(blocks) == [_MISSING] * 20
        assert self.write(tier, blocks[:12]) == [_DONE] * 12
        assert other.find(blocks) == [_DONE] * 12 + [_MISSING] * 8
        assert self.read(other, blocks[:12]) == [_DONE] * 12
        assert other.find([]) == []

    def test_find_reports_common_part_of_diverging_chains(
        self, tier: Tier, other: SharedTier
    ) -> None:
        """Two engines wrote prefixes with the same first blocks."""
        trunk = [key(number) for number in range(5)]
        left = [*trunk, *(key(100 + number) for number in range(5))]
        right = [*trunk, *(key(200 + number) for number in range(5))]
        self.write(tier, left)
        assert other.find(right) == [_DONE] * 5 + [_MISSING] * 5
        assert self.write(other, right) == [_DONE] * 10
        assert self.read(other, left + right) == [_DONE] * 20
        assert self.read(tier, right) == [_DONE] * 10

    def test_second_writer_of_a_chain_keeps_the_first_ones_blocks(
        self, tier: Tier, other: SharedTier
    ) -> None:
        """Both then read the same blocks."""
        blocks = [key(number) for number in range(10)]
        assert self.write(tier, blocks[:7]) == [_DONE] * 7
        assert self.write(other, blocks) == [_DONE] * 10
        assert self.read(tier, blocks) == [_DONE] * 10
        assert sorted(stored.key for stored in self.scanned(other)) == sorted(blocks)

    def test_block_removed_by_another_process_is_missing(
        self, tier: Tier, other: SharedTier
    ) -> None:
        """It can be written again."""
        blocks = [key(number) for number in range(4)]
        self.write(tier, blocks)
        assert self.read(other, blocks) == [_DONE] * 4
        tier.delete(blocks)
        assert self.read(other, blocks) == [_MISSING] * 4
        assert other.find(blocks) == [_MISSING] * 4
        assert self.write(other, blocks) == [_DONE] * 4
        assert self.read(other, blocks) == [_DONE] * 4
