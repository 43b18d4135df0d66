"""The transfer engine: threads that move batches between RAM and the lower tiers.

Queues, priorities, cancellation, back-pressure and breakers are implemented here, once for all
tiers, so that no caller ever waits for a tier.

Invariants:
* every block of an accepted transfer appears in exactly one completion, even if a tier raises or
  the engine is closed; the only exception is a call that never returns, whose thread is a daemon;
* the queue of writes is bounded in blocks; reads are rejected only while a breaker is open.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from kvtier.clock import perf_s
from kvtier.tiers.base import Outcome, SharedTier, Tier
from kvtier.transfer.base import Completion, Direction, Transfer
from kvtier.transfer.breaker import Breaker, BreakerState

_log = logging.getLogger(__name__)

_PRIORITY = {direction: number for number, direction in enumerate(Direction)}


class TransferPart(NamedTuple):
    """The blocks `start` up to, but not including, `stop` of a transfer: one call of the tier."""

    transfer: Transfer
    start: int
    stop: int


_PART_BYTES = 8 * 1024 * 1024
"""The approximate size of a part: small enough to spread over threads and to complete early, and
large enough that passing it to a thread costs nothing in comparison."""


class TransferEngine:
    """An implementation of Transfers in real time: a queue and a few threads for each tier.

    `submit`, `poll`, `cancel` and `queued_blocks` never block; `drain` and `close` do.
    `on_thread_start` runs first in every thread, to set the CPU affinity or a test's seed. A call
    that takes longer than `hang_s` seconds opens its tier's breaker.
    """

    def __init__(
        self,
        tiers: Sequence[Tier],
        slot_bytes: int,
        queue_blocks: int,
        on_thread_start: Callable[[], None] | None = None,
        hang_s: float = 5.0,
    ) -> None:
        self.queue_blocks = queue_blocks
        """The largest number of blocks that may be queued or running as writes to one tier."""
        self._completions: deque[Completion] = deque()
        part_blocks = max(1, _PART_BYTES // slot_bytes)
        start = on_thread_start or (lambda: None)
        self._queues = [
            TierQueue(tier, queue_blocks, part_blocks, self._completions, start, hang_s)
            for tier in tiers
        ]

    def submit(self, transfer: Transfer) -> bool:
        """Queue a transfer for tier number `transfer.tier` (1 is the first lower tier).

        Returns False, and does nothing, if a write finds its queue full, if the breaker is open,
        or if the engine is closed.
        """
        return self._queues[transfer.tier - 1].submit(transfer)

    def poll(self) -> list[Completion]:
        """Return the completions since the last call, in order."""
        for queue in self._queues:
            queue.watch()
        done: list[Completion] = []
        while self._completions:
            done.append(self._completions.popleft())
        return done

    def cancel(self, transfer: Transfer) -> None:
        """Cancel the parts that have not begun: they complete with `outcomes=None`."""
        transfer.cancelled = True

    def queued_blocks(self, tier: int, direction: Direction) -> int:
        """Return the blocks queued or running to or from lower tier `tier`."""
        return self._queues[tier - 1].blocks[direction]

    def breaker(self, tier: int, direction: Direction) -> BreakerState:
        """Return the state of the breaker for such calls to lower tier `tier`."""
        return self._queues[tier - 1].breaker(direction)

    def is_idle(self) -> bool:
        """Return True if nothing is queued, running, or completed but not yet polled."""
        # The order of these lines matters: a part counts in `blocks` until it can be polled.
        is_moving = any(any(queue.blocks.values()) for queue in self._queues)
        return not is_moving and not self._completions

    def drain(self, deadline_s: float) -> bool:
        """Wait until nothing is queued or running; return False after `deadline_s` seconds."""
        end_s = perf_s() + deadline_s
        return all(queue.wait_idle(end_s) for queue in self._queues)

    def close(self, deadline_s: float) -> bool:
        """Cancel what has not begun, let the rest finish and end the threads. Idempotent.

        Returns False if a call did not return within `deadline_s` seconds; its daemon thread is
        abandoned. The completions of cancelled parts can still be polled.
        """
        end_s = perf_s() + deadline_s
        for queue in self._queues:
            queue.shut()
        ended = [queue.join(end_s) for queue in self._queues]
        return all(ended)


class TierQueue:
    """The queue and the threads of one tier. Only `wait_idle` and `join` block.

    Reads and changes have a breaker each, because a full store can still be read. Invariant: a part
    leaves the queue once and completes once, whatever its call does.
    """

    def __init__(
        self,
        tier: Tier,
        queue_blocks: int,
        part_blocks: int,
        completions: deque[Completion],
        on_thread_start: Callable[[], None],
        hang_s: float,
    ) -> None:
        self._tier = tier
        self._queue_blocks = queue_blocks
        self._part_blocks = part_blocks
        self._completions = completions
        self._on_thread_start = on_thread_start
        self._hang_s = hang_s
        self._queues: tuple[deque[TransferPart], ...] = tuple(deque() for _ in Direction)
        self._wake = threading.Condition()
        self._closed = False
        self._running: dict[int, tuple[float, Breaker]] = {}
        """By thread: when its running call began, and the breaker of that call."""
        reading, changing = Breaker(), Breaker()
        self._breakers = {
            Direction.FIND: reading,
            Direction.READ: reading,
            Direction.DELETE: changing,
            Direction.WRITE: changing,
        }
        self.blocks = dict.fromkeys(Direction, 0)
        name = tier.capabilities.name
        self._threads = [
            threading.Thread(
                target=self._run, args=(number,), name=f"kvtier-{name}-{number}", daemon=True
            )
            for number in range(tier.capabilities.io_threads)
        ]
        for thread in self._threads:
            thread.start()

    def breaker(self, direction: Direction) -> BreakerState:
        """Return the state of the breaker for calls of this kind."""
        return self._breakers[direction].state(perf_s())

    def submit(self, transfer: Transfer) -> bool:
        """Queue a transfer in parts; return False if it is rejected."""
        count = len(transfer.keys)
        direction = transfer.direction
        with self._wake:
            if self._closed or self._breakers[direction].state(perf_s()) is BreakerState.OPEN:
                return False
            full = self.blocks[direction] + count > self._queue_blocks
            if direction is Direction.WRITE and full:
                return False
            self.blocks[direction] += count
            queue = self._queues[_PRIORITY[direction]]
            step = self._step_blocks(direction, count)
            for start in range(0, count, step):
                queue.append(TransferPart(transfer, start, min(start + step, count)))
            self._wake.notify_all()
        return True

    def watch(self) -> None:
        """Open the breakers of calls that hang, and cancel what is queued behind them."""
        if not self._running:
            return
        now_s = perf_s()
        with self._wake:
            for began_s, breaker in self._running.values():
                if now_s - began_s > self._hang_s:
                    breaker.hung(now_s)
            for direction, breaker in self._breakers.items():
                if breaker.state(now_s) is BreakerState.OPEN:
                    self._cancel_all(self._queues[_PRIORITY[direction]])

    def wait_idle(self, end_s: float) -> bool:
        """Wait until nothing is queued or running; return False at the time `end_s` (`perf_s`)."""
        with self._wake:
            return self._wake.wait_for(
                lambda: not any(self.blocks.values()), max(0.0, end_s - perf_s())
            )

    def shut(self) -> None:
        """Cancel everything queued and reject new transfers."""
        with self._wake:
            self._closed = True
            # The threads cannot do this: all of them may hang in the tier.
            for queue in self._queues:
                self._cancel_all(queue)
            self._wake.notify_all()

    def join(self, end_s: float) -> bool:
        """Wait for the threads to end; return False if one is still in its call at `end_s`."""
        for thread in self._threads:
            thread.join(max(0.0, end_s - perf_s()))
        return not any(thread.is_alive() for thread in self._threads)

    def _step_blocks(self, direction: Direction, count: int) -> int:
        if direction in (Direction.FIND, Direction.DELETE):
            return max(1, count)  # No bytes move, so one call does it all.
        if direction is Direction.WRITE:
            return max(self._part_blocks, self._tier.capabilities.batch_blocks)
        return self._part_blocks

    def _cancel_all(self, queue: deque[TransferPart]) -> None:
        """Complete all parts in a queue as cancelled. Call with `_wake` held."""
        while queue:
            transfer, start, stop = queue.popleft()
            self._completions.append(Completion(transfer, start, stop, None, 0.0))
            self.blocks[transfer.direction] -= stop - start
        if not any(self.blocks.values()):
            self._wake.notify_all()

    def _run(self, number: int) -> None:
        try:
            self._on_thread_start()
        except Exception:
            # A thread with the wrong affinity is slow, but a tier without threads does nothing.
            _log.exception("setting up a transfer thread failed")
        while (part := self._next(number)) is not None:
            transfer, start, stop = part
            outcomes: list[Outcome] | None = None
            began_s = perf_s()
            if number in self._running:
                outcomes = self._perform(transfer, start, stop)
            now_s = perf_s()
            self._completions.append(Completion(transfer, start, stop, outcomes, now_s - began_s))
            with self._wake:
                self._inform_breaker(number, outcomes, now_s)
                self.blocks[transfer.direction] -= stop - start
                if not any(self.blocks.values()):
                    self._wake.notify_all()

    def _next(self, number: int) -> TransferPart | None:
        """Wait for the next part and enter it in `_running` if its call may begin.

        Returns None once the queue is closed and empty.
        """
        with self._wake:
            while True:
                for queue in self._queues:
                    if queue:
                        part = queue.popleft()
                        breaker, now_s = self._breakers[part.transfer.direction], perf_s()
                        if not part.transfer.cancelled and breaker.admits(now_s):
                            self._running[number] = now_s, breaker
                        return part
                if self._closed:
                    return None
                self._wake.wait()

    def _inform_breaker(self, number: int, outcomes: list[Outcome] | None, now_s: float) -> None:
        """Tell the breaker the result of a call that has returned. Call with `_wake` held."""
        running = self._running.pop(number, None)
        if running is None or outcomes is None:
            return
        if outcomes and all(outcome is Outcome.FAILED for outcome in outcomes):
            running[1].failed(now_s)
        else:
            running[1].succeeded()

    def _perform(self, transfer: Transfer, start: int, stop: int) -> list[Outcome]:
        name = self._tier.capabilities.name
        try:
            outcomes = _call(self._tier, transfer, slice(start, stop))
            if len(outcomes) == stop - start:
                return outcomes
            _log.error("tier %s returned a wrong number of outcomes", name)
        except Exception:
            # Tiers promise not to raise, but a bug in one must not end the thread.
            _log.exception("tier %s raised in a transfer", name)
        return [Outcome.FAILED] * (stop - start)


def _call(tier: Tier, transfer: Transfer, part: slice) -> list[Outcome]:
    if transfer.direction is Direction.READ:
        return tier.read_into(transfer.moves[part])
    if transfer.direction is Direction.WRITE:
        return tier.write_from(transfer.moves[part], transfer.parents[part])
    if transfer.direction is Direction.DELETE:
        return tier.delete(transfer.keys[part])
    assert isinstance(tier, SharedTier), "FIND needs a shared tier"
    return tier.find(transfer.keys[part])
