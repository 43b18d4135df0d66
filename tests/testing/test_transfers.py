import numpy as np
import pytest

from kvtier.blocks.key import BlockKey
from kvtier.clock import VirtualClock
from kvtier.testing.memory_tier import MemoryTier
from kvtier.testing.transfers import InlineTransfers
from kvtier.tiers.base import BlockMove, Outcome
from kvtier.transfer.base import Direction, Transfer, Transfers

NAMES = [BlockKey(bytes([number])) for number in range(7)]


def transfer(direction: Direction, names: list[BlockKey] = NAMES) -> Transfer:
    moves = [BlockMove(name, np.full(8, name[0], np.uint8)) for name in names]
    return Transfer(1, direction, list(range(len(names))), names, moves, [None] * len(names))


def order(seed: int) -> list[tuple[Direction, int]]:
    clock = VirtualClock()
    engine = InlineTransfers([MemoryTier()], clock, seed=seed, delay_s=1.0)
    for direction in Direction:
        engine.submit(transfer(direction))
    done = []
    while not engine.is_idle:
        clock.advance(0.05)
        done += [(each.transfer.direction, each.start) for each in engine.poll()]
    return done


def test_seed_decides_the_order_of_transfers() -> None:
    assert order(1) == order(1)
    assert len({tuple(order(seed)) for seed in range(5)}) == 5
    assert sorted(order(3), key=str) == sorted(order(4), key=str)


@pytest.mark.parametrize("direction", list(Direction))
def test_every_block_completes_once_and_when_due(direction: Direction) -> None:
    clock = VirtualClock()
    engine: Transfers = InlineTransfers([MemoryTier()], clock, delay_s=1.0)
    job = transfer(direction)
    assert engine.submit(job)
    assert engine.poll() == []
    assert engine.queued_blocks(1, direction) == 7
    clock.advance(2.0)
    completions = engine.poll()
    assert sorted(row for each in completions for row in job.rows[each.start : each.stop]) == (
        job.rows
    )
    assert engine.queued_blocks(1, direction) == 0


def test_writes_are_bounded_and_reads_are_not() -> None:
    engine = InlineTransfers([MemoryTier()], VirtualClock(), queue_blocks=10)
    assert engine.submit(transfer(Direction.WRITE))
    assert not engine.submit(transfer(Direction.WRITE))
    assert engine.submit(transfer(Direction.READ, NAMES * 3))


def test_transfer_cancelled_before_its_begin_does_nothing() -> None:
    tier = MemoryTier()
    engine = InlineTransfers([tier], VirtualClock())
    job = transfer(Direction.WRITE)
    engine.submit(job)
    engine.cancel(job)
    assert {each.outcomes is None for each in engine.poll()} == {True}
    assert len(tier) == 0


def test_stalled_parts_end_late() -> None:
    clock = VirtualClock()
    engine = InlineTransfers([MemoryTier()], clock, stall_every=1, stall_s=9.0)
    engine.submit(transfer(Direction.WRITE, NAMES[:1]))
    clock.advance(8.0)
    assert engine.poll() == []
    clock.advance(1.0)
    assert [each.outcomes for each in engine.poll()] == [[Outcome.DONE]]


def test_close_cancels_waiting_transfers_and_refuses_new_ones() -> None:
    engine = InlineTransfers([MemoryTier()], VirtualClock(), delay_s=1.0)
    engine.submit(transfer(Direction.WRITE))
    assert engine.close(0.0)
    assert sum(each.stop - each.start for each in engine.poll()) == 7
    assert not engine.submit(transfer(Direction.READ))
