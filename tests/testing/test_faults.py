"""A tier that fails on purpose."""

import threading
from pathlib import Path

import numpy as np
import pytest

from kvtier.blocks.key import BlockKey
from kvtier.clock import VirtualClock
from kvtier.testing.faults import Fault, FaultyTier
from kvtier.testing.memory_tier import MemoryTier
from kvtier.testing.tiers import TierContract, key
from kvtier.tiers.base import BlockMove, Buffer, Outcome, Tier

BLOCKS = [key(number) for number in range(4)]


class TestFaultyTierWithoutFaultsContract(TierContract):
    """Without faults the wrapper keeps the contract, and detects bytes changed behind it."""

    def make_tier(self, folder: Path, capacity_blocks: int) -> Tier:
        self.inner = MemoryTier(capacity_blocks)
        return FaultyTier(self.inner, block_bytes=self.layout.block_bytes)

    def corrupt(self, tier: Tier, folder: Path, block: BlockKey) -> None:
        self.inner.raw(block)[5_000] ^= 4


def content(block: BlockKey) -> Buffer:
    return np.full(64, block[0] * 16 + block[3], np.uint8)


def write(tier: Tier, blocks: list[BlockKey] = BLOCKS) -> list[Outcome]:
    return tier.write_from(
        [BlockMove(block, content(block)) for block in blocks], [None] * len(blocks)
    )


def read(tier: Tier, blocks: list[BlockKey] = BLOCKS) -> list[Outcome]:
    moves = [BlockMove(block, np.empty(64, np.uint8)) for block in blocks]
    outcomes = tier.read_into(moves)
    for move, outcome in zip(moves, outcomes, strict=True):
        assert outcome is not Outcome.DONE or (move.buffer == content(move.key)).all()
    return outcomes


@pytest.fixture
def tier() -> FaultyTier:
    tier = FaultyTier(MemoryTier(8), clock=VirtualClock(), slow_s=2.0)
    write(tier)
    return tier


@pytest.mark.parametrize("fault", [Fault.BIT_FLIP, Fault.TRUNCATED, Fault.OVER_LONG])
def test_changed_read_is_corrupt_and_removed(tier: FaultyTier, fault: Fault) -> None:
    tier.inject(fault)
    outcomes = read(tier)
    assert sorted(outcome.name for outcome in outcomes) == ["CORRUPT", "DONE", "DONE", "DONE"]
    corrupt = outcomes.index(Outcome.CORRUPT)
    assert read(tier).index(Outcome.MISSING) == corrupt
    assert tier.happened == [fault]


def test_torn_write_is_done_and_corrupt_when_read() -> None:
    inner = MemoryTier(8)
    tier = FaultyTier(inner)
    tier.inject(Fault.TORN_WRITE)
    assert write(tier) == [Outcome.DONE] * 4
    assert (inner.raw(BLOCKS[1])[:32] == content(BLOCKS[1])[:32]).all()
    assert (inner.raw(BLOCKS[1])[32:] != content(BLOCKS[1])[32:]).all()
    assert read(tier) == [Outcome.CORRUPT] * 4
    assert write(tier) == [Outcome.DONE] * 4
    assert read(tier) == [Outcome.DONE] * 4


@pytest.mark.parametrize(
    ("fault", "verbs"),
    [
        (Fault.NO_SPACE, {"write"}),
        (Fault.IO_ERROR, {"read", "write", "delete"}),
        (Fault.NO_DESCRIPTORS, {"read", "write"}),
        (Fault.NO_PERMISSION, {"read", "write", "delete"}),
    ],
)
def test_refusal_fails_the_batch_and_changes_nothing(
    tier: FaultyTier, fault: Fault, verbs: set[str]
) -> None:
    more = [key(10), key(11)]
    for verb, call in (
        ("write", lambda: write(tier, more)),
        ("read", lambda: read(tier)),
        ("delete", lambda: tier.delete(BLOCKS)),
    ):
        if verb in verbs:
            tier.inject(fault)
            assert set(call()) == {Outcome.FAILED}
    assert tier.contains(BLOCKS + more) == [True] * 4 + [False] * 2
    assert write(tier, more) == [Outcome.DONE] * 2
    assert read(tier, BLOCKS + more) == [Outcome.DONE] * 6


def test_partial_batch_fails_its_second_half(tier: FaultyTier) -> None:
    tier.inject(Fault.PARTIAL, 3)
    assert read(tier) == [Outcome.DONE] * 2 + [Outcome.FAILED] * 2
    assert write(tier, [key(10), key(11)]) == [Outcome.DONE, Outcome.FAILED]
    assert tier.delete(BLOCKS) == [Outcome.DONE] * 2 + [Outcome.FAILED] * 2
    assert tier.contains([*BLOCKS, key(10), key(11)]) == [False, False, True, True, True, False]


def test_stale_listing_shows_deleted_blocks_that_read_as_missing(tier: FaultyTier) -> None:
    tier.delete(BLOCKS[:2])
    tier.inject(Fault.STALE_LISTING, 2)
    assert tier.contains([*BLOCKS, key(9)]) == [True] * 4 + [False]
    assert {stored.key for stored in tier.scan().blocks} == set(BLOCKS)
    assert read(tier) == [Outcome.MISSING] * 2 + [Outcome.DONE] * 2
    assert {stored.key for stored in tier.scan().blocks} == set(BLOCKS[2:])


def test_removed_folder_makes_everything_missing(tier: FaultyTier) -> None:
    tier.inject(Fault.FOLDER_REMOVED)
    assert read(tier) == [Outcome.MISSING] * 4
    assert tier.scan().blocks == []
    assert write(tier) == [Outcome.DONE] * 4
    assert read(tier) == [Outcome.DONE] * 4


def test_slow_call_sleeps_on_the_clock() -> None:
    clock = VirtualClock()
    tier = FaultyTier(MemoryTier(8), clock=clock, slow_s=2.0, rates={Fault.SLOW: 1.0})
    write(tier)
    tier.contains(BLOCKS)
    assert clock.now_s() == 4.0


@pytest.mark.parametrize("end", ["release", "close"])
def test_hung_call_waits_until_released(tier: FaultyTier, end: str) -> None:
    tier.inject(Fault.HUNG)
    outcomes: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.extend(read(tier)))
    thread.start()
    assert tier.hung.wait(30)
    assert outcomes == []
    assert thread.is_alive()
    getattr(tier, end)()
    thread.join(30)
    assert not thread.is_alive()
    assert len(outcomes) == 4


def test_verification_covers_only_the_payload() -> None:
    inner = MemoryTier(8)
    tier = FaultyTier(inner, block_bytes=48)
    write(tier)
    inner.raw(BLOCKS[0])[48] ^= 1
    inner.raw(BLOCKS[1])[47] ^= 1
    moves = [BlockMove(block, np.empty(64, np.uint8)) for block in BLOCKS[:2]]
    assert tier.read_into(moves) == [Outcome.DONE, Outcome.CORRUPT]


def schedule(seed: int) -> tuple[list[Fault], list[Outcome]]:
    rates = {fault: 0.1 for fault in Fault if fault is not Fault.HUNG}
    tier = FaultyTier(MemoryTier(12), seed=seed, rates=rates, clock=VirtualClock())
    outcomes = []
    for turn in range(200):
        blocks = [key((turn * 3 + step) % 20) for step in range(4)]
        outcomes += write(tier, blocks) + read(tier, blocks[::-1])
        if turn % 3 == 0:
            outcomes += tier.delete(blocks[:2])
        tier.contains(blocks)
        tier.scan()
    return tier.happened, outcomes


def test_same_seed_gives_same_run_with_every_fault() -> None:
    happened, outcomes = schedule(seed=5)
    assert (happened, outcomes) == schedule(seed=5)
    assert (happened, outcomes) != schedule(seed=6)
    assert set(happened) == set(Fault) - {Fault.HUNG}
    assert set(outcomes) == set(Outcome)
