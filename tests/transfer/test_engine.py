import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from kvtier.blocks.key import BlockKey
from kvtier.testing.faults import Fault, FaultyTier
from kvtier.testing.memory_tier import MemoryTier
from kvtier.tiers.base import BlockMove, Outcome, Tier
from kvtier.transfer.base import Completion, Direction, Transfer
from kvtier.transfer.engine import TransferEngine

SLOT_BYTES = 4096
# A part has two such blocks.
LARGE_SLOT_BYTES = 4 * 1024 * 1024
WAIT_S = 30.0


def keys(count: int, first: int = 0) -> list[BlockKey]:
    return [BlockKey((first + number).to_bytes(8, "big")) for number in range(count)]


def transfer(direction: Direction, names: Sequence[BlockKey], tier: int = 1) -> Transfer:
    moves = [BlockMove(name, np.zeros(16, np.uint8)) for name in names]
    rows = list(range(len(names)))
    return Transfer(tier, direction, rows, list(names), moves, [None] * len(names))


def covered(completions: Sequence[Completion], of: Transfer) -> list[int]:
    return sorted(
        row
        for completion in completions
        if completion.transfer is of
        for row in of.rows[completion.start : completion.stop]
    )


class ContractBreakingTier(MemoryTier):
    """A tier that breaks the contract: it raises, or returns a wrong number of outcomes."""

    def write_from(self, moves, parents):
        raise RuntimeError("a bug in a tier")

    def read_into(self, moves):
        return [Outcome.DONE]

    def delete(self, keys):
        return None

    def find(self, chain):
        return [Outcome.DONE] * (len(chain) + 1)


@pytest.fixture
def hanging() -> Iterator[FaultyTier]:
    """A tier with one thread, whose first call hangs until it is released."""
    tier = FaultyTier(MemoryTier(io_threads=1))
    tier.inject(Fault.HUNG)
    yield tier
    tier.close()


@pytest.fixture
def started() -> Iterator[list[TransferEngine]]:
    engines: list[TransferEngine] = []
    yield engines
    for engine in engines:
        engine.close(WAIT_S)


def start(engines: list[TransferEngine], *tiers: Tier, slot_bytes: int = SLOT_BYTES, queue=64):
    engines.append(TransferEngine(tiers, slot_bytes, queue))
    return engines[-1]


def test_blocks_are_written_and_read_back(started: list[TransferEngine]) -> None:
    engine = start(started, MemoryTier(), MemoryTier(name="second"))
    write = transfer(Direction.WRITE, keys(5), tier=2)
    for number, move in enumerate(write.moves):
        move.buffer[:] = number + 1
    assert engine.submit(write)
    assert engine.drain(WAIT_S)
    (done,) = engine.poll()
    assert done.outcomes == [Outcome.DONE] * 5
    assert engine.poll() == []
    for tier, outcome in ((1, Outcome.MISSING), (2, Outcome.DONE)):
        read = transfer(Direction.READ, keys(5), tier)
        engine.submit(read)
        assert engine.drain(WAIT_S)
        assert engine.poll()[0].outcomes == [outcome] * 5
    assert [int(move.buffer[0]) for move in read.moves] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize("count", [1, 2, 7])
def test_every_block_completes_once(
    started: list[TransferEngine], direction: Direction, count: int
) -> None:
    engine = start(started, MemoryTier(), slot_bytes=LARGE_SLOT_BYTES)
    several = [transfer(direction, keys(count, 10 * turn)) for turn in range(5)]
    for each in several:
        assert engine.submit(each)
    assert engine.drain(WAIT_S)
    completions = engine.poll()
    for each in several:
        assert covered(completions, each) == each.rows
    parts = 1 if direction in (Direction.DELETE, Direction.FIND) else -(-count // 2)
    assert len(completions) == 5 * parts


@pytest.mark.parametrize("direction", list(Direction))
def test_tier_that_breaks_contract_fails_its_blocks(
    started: list[TransferEngine], direction: Direction
) -> None:
    engine = start(started, ContractBreakingTier(io_threads=1))
    for _ in range(2):
        assert engine.submit(transfer(direction, keys(3)))
        assert engine.drain(WAIT_S)
        (done,) = engine.poll()
        assert done.outcomes == [Outcome.FAILED] * 3


def test_empty_transfer_completes_nothing(started: list[TransferEngine]) -> None:
    engine = start(started, MemoryTier())
    for direction in Direction:
        assert engine.submit(transfer(direction, []))
    assert engine.drain(WAIT_S)
    assert engine.poll() == []


def test_reads_have_priority_over_deletes_over_writes(
    started: list[TransferEngine], hanging: FaultyTier
) -> None:
    engine = start(started, hanging)
    engine.submit(transfer(Direction.READ, keys(1)))
    assert hanging.hung.wait(WAIT_S)
    for direction in (Direction.WRITE, Direction.DELETE, Direction.READ):
        engine.submit(transfer(direction, keys(2)))
    hanging.release()
    assert engine.drain(WAIT_S)
    order = [done.transfer.direction for done in engine.poll()]
    assert order == [Direction.READ, Direction.READ, Direction.DELETE, Direction.WRITE]


def test_only_writes_are_bounded(started: list[TransferEngine], hanging: FaultyTier) -> None:
    engine = start(started, hanging, queue=4)
    assert engine.queue_blocks == 4
    assert engine.submit(transfer(Direction.WRITE, keys(3)))
    assert not engine.submit(transfer(Direction.WRITE, keys(2)))
    assert engine.submit(transfer(Direction.WRITE, keys(1)))
    assert engine.queued_blocks(1, Direction.WRITE) == 4
    assert engine.submit(transfer(Direction.READ, keys(50)))
    assert engine.submit(transfer(Direction.DELETE, keys(50)))
    hanging.release()
    assert engine.drain(WAIT_S)
    assert engine.queued_blocks(1, Direction.WRITE) == 0
    assert engine.submit(transfer(Direction.WRITE, keys(4)))


def test_cancelled_parts_touch_nothing(started: list[TransferEngine], hanging: FaultyTier) -> None:
    engine = start(started, hanging)
    first, second = (transfer(Direction.WRITE, keys(2, first)) for first in (0, 10))
    engine.submit(first)
    assert hanging.hung.wait(WAIT_S)
    engine.submit(second)
    engine.cancel(first)
    engine.cancel(second)
    hanging.release()
    assert engine.drain(WAIT_S)
    outcomes = {done.transfer: done.outcomes for done in engine.poll()}
    assert outcomes == {first: [Outcome.DONE] * 2, second: None}
    assert hanging.contains([*keys(2), *keys(2, 10)]) == [True, True, False, False]


def test_is_idle_only_when_nothing_is_left_to_poll(
    started: list[TransferEngine], hanging: FaultyTier
) -> None:
    engine = start(started, hanging)
    assert engine.is_idle()
    engine.submit(transfer(Direction.WRITE, keys(1)))
    assert not engine.is_idle()
    assert not engine.drain(0.0)
    hanging.release()
    assert engine.drain(WAIT_S)
    assert not engine.is_idle()
    engine.poll()
    assert engine.is_idle()


def test_close_ends_threads_and_rejects_transfers() -> None:
    before = threading.active_count()
    engine = TransferEngine([MemoryTier(io_threads=3), MemoryTier(io_threads=2)], SLOT_BYTES, 64)
    assert threading.active_count() == before + 5
    assert engine.close(WAIT_S)
    assert engine.close(WAIT_S)
    assert threading.active_count() == before
    assert not engine.submit(transfer(Direction.READ, keys(1)))
    assert engine.queued_blocks(1, Direction.READ) == 0


def test_close_abandons_hung_tier_and_cancels_queue(
    hanging: FaultyTier,
) -> None:
    engine = TransferEngine([hanging], SLOT_BYTES, 64)
    stuck, queued = transfer(Direction.WRITE, keys(1)), transfer(Direction.READ, keys(3))
    engine.submit(stuck)
    assert hanging.hung.wait(WAIT_S)
    engine.submit(queued)
    assert not engine.close(0.01)
    (done,) = engine.poll()
    assert (done.transfer, done.outcomes) == (queued, None)
    hanging.release()
    assert engine.close(WAIT_S)
    assert covered(engine.poll(), stuck) == [0]


def test_threads_survive_failing_thread_start_hook() -> None:
    names: list[str] = []

    def set_up() -> None:
        names.append(threading.current_thread().name)
        raise OSError("no such processor")

    engine = TransferEngine([MemoryTier(name="slab", io_threads=2)], SLOT_BYTES, 64, set_up)
    engine.submit(transfer(Direction.WRITE, keys(1)))
    assert engine.drain(WAIT_S)
    assert engine.close(WAIT_S)
    assert sorted(names) == ["kvtier-slab-0", "kvtier-slab-1"]
