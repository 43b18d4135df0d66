"""Moves batches between RAM and the lower tiers on threads, so that no caller ever waits.

Invariants:
* every block of an accepted transfer appears in exactly one completion, also when a tier
  raises, also at close (those in a call that never returns excepted: its thread is a daemon);
* the queue of writes is bounded in blocks; reads are refused by an open breaker only.
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
    """Blocks `start` up to `stop` of a transfer, which one tier call moves."""

    transfer: Transfer
    start: int
    stop: int


_PART_BYTES = 8 * 1024 * 1024
"""A part is about this large: small enough to spread over threads and to be ready early,
large enough that the hand-over between threads costs nothing."""


class TransferEngine:
    """One queue and a few threads for each tier: `transfer.base.Transfers` on real time.

    `submit`, `poll`, `cancel` and `queued_blocks` never block; `drain` and `close` do.
    `on_thread_start` runs first in every thread (the engine's affinity, a test's seed). A call
    that takes longer than `hang_s` opens its tier's breaker.
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
        """Blocks that may wait for or be in writes to one tier."""
        self._completions: deque[Completion] = deque()
        part_blocks = max(1, _PART_BYTES // slot_bytes)
        start = on_thread_start or (lambda: None)
        self._lanes = [
            TierQueue(tier, queue_blocks, part_blocks, self._completions, start, hang_s)
            for tier in tiers
        ]

    def submit(self, transfer: Transfer) -> bool:
        """Queue a transfer for tier number `transfer.tier` (1 is the first lower tier).

        False, and nothing happens, where a write finds its queue full, a breaker is open, or the
        engine closed.
        """
        return self._lanes[transfer.tier - 1].submit(transfer)

    def poll(self) -> list[Completion]:
        """What has completed since the last call, in order of completion."""
        for lane in self._lanes:
            lane.watch()
        done: list[Completion] = []
        while self._completions:
            done.append(self._completions.popleft())
        return done

    def cancel(self, transfer: Transfer) -> None:
        """Parts that have not begun complete with `outcomes=None`; the others run on."""
        transfer.cancelled = True

    def queued_blocks(self, tier: int, direction: Direction) -> int:
        """Blocks waiting or moving."""
        return self._lanes[tier - 1].blocks[direction]

    def breaker(self, tier: int, direction: Direction) -> BreakerState:
        """Whether calls to lower tier `tier` pass now."""
        return self._lanes[tier - 1].breaker(direction)

    def is_idle(self) -> bool:
        """True if nothing is queued, moving, or completed and not yet polled."""
        # In this order: a part is in `blocks` until its completion can be polled.
        is_moving = any(any(lane.blocks.values()) for lane in self._lanes)
        return not is_moving and not self._completions

    def drain(self, deadline_s: float) -> bool:
        """Block until nothing is queued or moving, at most `deadline_s` seconds; True if so."""
        end_s = perf_s() + deadline_s
        return all(lane.wait_idle(end_s) for lane in self._lanes)

    def close(self, deadline_s: float) -> bool:
        """Cancel what has not begun, let the rest finish, end the threads. Idempotent.

        False if a tier call did not return in time; its daemon thread is abandoned. What was
        cancelled can still be polled.
        """
        end_s = perf_s() + deadline_s
        for lane in self._lanes:
            lane.shut()
        ended = [lane.join(end_s) for lane in self._lanes]
        return all(ended)


class TierQueue:
    """Serves one tier. `submit`, `watch` and the properties never block; the rest does.

    Reading and changing have a breaker each: a full store can still be read.
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
        """Thread to when its call began, and whose call it is."""
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
        """Whether calls of this kind pass now."""
        return self._breakers[direction].state(perf_s())

    def submit(self, transfer: Transfer) -> bool:
        """Queue it in parts. False where it may not wait."""
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
        """Open the breaker of a call that hangs, and let nobody wait behind it."""
        if not self._running:
            return
        now_s = perf_s()
        with self._wake:
            for began_s, breaker in self._running.values():
                if now_s - began_s > self._hang_s:
                    breaker.hung(now_s)
            for direction, breaker in self._breakers.items():
                if breaker.state(now_s) is BreakerState.OPEN:
                    self._drop(self._queues[_PRIORITY[direction]])

    def wait_idle(self, end_s: float) -> bool:
        """Block until nothing is queued or moving, or `end_s` of `perf_s` passes."""
        with self._wake:
            return self._wake.wait_for(
                lambda: not any(self.blocks.values()), max(0.0, end_s - perf_s())
            )

    def shut(self) -> None:
        """Cancel what waits, take in nothing more."""
        with self._wake:
            self._closed = True
            # Here, and not in the threads: they may all hang in the tier.
            for queue in self._queues:
                self._drop(queue)
            self._wake.notify_all()

    def join(self, end_s: float) -> bool:
        """Wait for the threads until `end_s`; False if one is still in its call."""
        for thread in self._threads:
            thread.join(max(0.0, end_s - perf_s()))
        return not any(thread.is_alive() for thread in self._threads)

    def _step_blocks(self, direction: Direction, count: int) -> int:
        if direction in (Direction.FIND, Direction.DELETE):
            return max(1, count)  # no bytes move: one call
        if direction is Direction.WRITE:
            return max(self._part_blocks, self._tier.capabilities.batch_blocks)
        return self._part_blocks

    def _drop(self, queue: deque[TransferPart]) -> None:
        """Complete what waits as cancelled. Call with `_wake` held."""
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
            # A thread with the wrong affinity is slow, a tier without threads is dead.
            _log.exception("a transfer thread could not be set up")
        while (part := self._next(number)) is not None:
            transfer, start, stop = part
            outcomes: list[Outcome] | None = None
            began_s = perf_s()
            if number in self._running:
                outcomes = self._perform(transfer, start, stop)
            now_s = perf_s()
            self._completions.append(Completion(transfer, start, stop, outcomes, now_s - began_s))
            with self._wake:
                self._judge(number, outcomes, now_s)
                self.blocks[transfer.direction] -= stop - start
                if not any(self.blocks.values()):
                    self._wake.notify_all()

    def _next(self, number: int) -> TransferPart | None:
        """The next part; in `_running` if its call may begin."""
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

    def _judge(self, number: int, outcomes: list[Outcome] | None, now_s: float) -> None:
        """What a call that has returned says of its tier. Call with `_wake` held."""
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
            _log.error("tier %s gave a wrong number of outcomes", name)
        except Exception:
            # A tier promises not to raise; a bug in one must not end the thread.
            _log.exception("tier %s failed in a transfer", name)
        return [Outcome.FAILED] * (stop - start)


def _call(tier: Tier, transfer: Transfer, part: slice) -> list[Outcome]:
    if transfer.direction is Direction.READ:
        return tier.read_into(transfer.moves[part])
    if transfer.direction is Direction.WRITE:
        return tier.write_from(transfer.moves[part], transfer.parents[part])
    if transfer.direction is Direction.DELETE:
        return tier.delete(transfer.keys[part])
    assert isinstance(tier, SharedTier), "only a shared tier is asked"
    return tier.find(transfer.keys[part])
