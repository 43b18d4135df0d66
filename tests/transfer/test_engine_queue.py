"""The queue of one tier: breakers for a tier that fails or hangs, and its threads."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

import msgspec
import numpy as np
import pytest

from kvtier.blocks.key import BlockKey
from kvtier.testing.faults import Fault, FaultyTier
from kvtier.testing.memory_tier import MemoryTier
from kvtier.tiers.base import BlockMove, Outcome
from kvtier.transfer import breaker
from kvtier.transfer.base import Completion, Direction, Transfer
from kvtier.transfer.breaker import FAILURES, BreakerState
from kvtier.transfer.engine import TierQueue

HANG_S = 0.05
WAIT_S = 30.0
READ, WRITE, FIND = Direction.READ, Direction.WRITE, Direction.FIND


class Rig:
    def __init__(self, io_threads: int = 1) -> None:
        self.tier = FaultyTier(MemoryTier(io_threads=io_threads, shared=True))
        self.completions: deque[Completion] = deque()
        self.queue = TierQueue(self.tier, 64, 2, self.completions, lambda: None, HANG_S)

    def submit(self, direction: Direction, count: int = 1) -> bool:
        keys = [BlockKey(bytes([number]) * 8) for number in range(count)]
        moves = [BlockMove(key, np.zeros(16, np.uint8)) for key in keys]
        return self.queue.submit(
            Transfer(1, direction, list(range(count)), keys, moves, [None] * count)
        )

    def run(self, direction: Direction, count: int = 1) -> list[Outcome] | None:
        """Submit one part and wait for it."""
        assert self.submit(direction, count)
        assert self.queue.wait_idle(time.perf_counter() + WAIT_S)
        return self.completions.popleft().outcomes

    def wait(self, condition: Callable[[], bool]) -> None:
        give_up_s = time.monotonic() + WAIT_S
        while not condition():
            self.queue.watch()
            time.sleep(0.001)
            assert time.monotonic() < give_up_s

    def close(self) -> None:
        self.tier.release()
        self.queue.shut()
        assert self.queue.join(time.perf_counter() + WAIT_S)


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(breaker, "PAUSE_S", 0.05)
    rig = Rig()
    yield rig
    rig.close()


def fail(rig: Rig, direction: Direction) -> None:
    rig.tier.inject(Fault.IO_ERROR, FAILURES)
    for _ in range(FAILURES):
        assert rig.run(direction) == [Outcome.FAILED]


def test_failing_reads_open_breaker_and_are_rejected(rig: Rig) -> None:
    fail(rig, READ)
    assert rig.queue.breaker(READ) is BreakerState.OPEN
    assert not rig.submit(READ)
    assert not rig.submit(FIND)
    rig.wait(lambda: rig.queue.breaker(READ) is BreakerState.HALF_OPEN)
    assert rig.run(READ) == [Outcome.MISSING], "MISSING is an answer"
    assert rig.queue.breaker(READ) is BreakerState.CLOSED


def test_full_tier_can_still_be_read(rig: Rig) -> None:
    fail(rig, WRITE)
    assert not rig.submit(WRITE)
    assert rig.run(READ) == [Outcome.MISSING]
    assert rig.run(FIND, 3) == [Outcome.MISSING] * 3


def test_hanging_call_cancels_queued_parts(rig: Rig) -> None:
    rig.tier.inject(Fault.HUNG)
    assert rig.submit(READ)
    assert rig.tier.hung.wait(WAIT_S)
    assert rig.submit(FIND, 3)
    assert rig.submit(READ, 5)
    rig.wait(lambda: rig.queue.breaker(READ) is BreakerState.OPEN)
    assert sum(each.stop - each.start for each in rig.completions) == 8
    assert all(each.outcomes is None for each in rig.completions)
    rig.completions.clear()
    rig.tier.release()
    rig.wait(lambda: bool(rig.completions))
    assert rig.completions.popleft().outcomes == [Outcome.MISSING]
    assert rig.queue.breaker(READ) is BreakerState.CLOSED
    assert not any(rig.queue.blocks.values())


def test_partial_failure_keeps_breaker_closed(rig: Rig) -> None:
    rig.tier.inject(Fault.PARTIAL, 2 * FAILURES)
    for _ in range(2 * FAILURES):
        assert rig.run(READ, 2) == [Outcome.MISSING, Outcome.FAILED]
    assert rig.queue.breaker(READ) is BreakerState.CLOSED


def test_batch_blocks_are_written_in_one_call() -> None:
    calls: list[int] = []

    class Packing(MemoryTier):
        def write_from(self, moves, parents):
            calls.append(len(moves))
            return super().write_from(moves, parents)

    tier = Packing(io_threads=1)
    tier.capabilities = msgspec.structs.replace(tier.capabilities, batch_blocks=8)
    completions: deque[Completion] = deque()
    queue = TierQueue(tier, 64, 2, completions, lambda: None, HANG_S)
    keys = [BlockKey(bytes([number]) * 8) for number in range(20)]
    moves = [BlockMove(key, np.zeros(16, np.uint8)) for key in keys]
    assert queue.submit(Transfer(1, WRITE, list(range(20)), keys, moves, [None] * 20))
    assert queue.wait_idle(time.perf_counter() + WAIT_S)
    queue.shut()
    assert queue.join(time.perf_counter() + WAIT_S)
    assert calls == [8, 8, 4]


def test_threads_are_named_after_their_tier(rig: Rig) -> None:
    assert "kvtier-memory-0" in {thread.name for thread in threading.enumerate()}
