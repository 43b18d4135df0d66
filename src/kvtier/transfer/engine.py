"""Moves batches between RAM and the lower tiers on threads, so that no caller ever waits.

Queues, priorities, cancellation and back-pressure live here, once, for every tier.

Invariants:
* every block of an accepted transfer appears in exactly one completion, also when a tier
  raises, also at close (those in a call that never returns excepted: its thread is a daemon);
* the queue of writes is bounded in blocks; reads are never refused.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from kvtier.clock import perf_s
from kvtier.tiers.base import Outcome, Tier
from kvtier.transfer.job import Completion, Direction, Transfer

_log = logging.getLogger(__name__)

_PART_BYTES = 8 * 1024 * 1024
"""A part is about this large: small enough to spread over threads and to be ready early,
large enough that the hand-over between threads costs nothing."""

_PRIORITY = {Direction.READ: 0, Direction.DELETE: 1, Direction.WRITE: 2}

Part = tuple[Transfer, int, int]


class TransferEngine:
    """One queue and a few threads for each tier: `transfer.base.Transfers` on real time.

    `submit`, `poll`, `cancel` and `queued_blocks` never block; `drain` and `close` do.
    `on_thread_start` runs first in every thread (the engine's affinity, a test's seed).
    """

    def __init__(
        self,
        tiers: Sequence[Tier],
        slot_bytes: int,
        queue_blocks: int,
        on_thread_start: Callable[[], None] | None = None,
    ) -> None:
        self.queue_blocks = queue_blocks
        """Blocks that may wait for or be in writes to one tier."""
        self._completions: deque[Completion] = deque()
        self._part_blocks = max(1, _PART_BYTES // slot_bytes)
        start = on_thread_start or (lambda: None)
        self._lanes = [_Lane(tier, queue_blocks, self._completions, start) for tier in tiers]

    def submit(self, transfer: Transfer) -> bool:
        """Queue a transfer for tier number `transfer.tier` (1 is the first lower tier).

        False, and nothing happens, where a write finds its queue full or the engine closed.
        """
        return self._lanes[transfer.tier - 1].submit(transfer, self._part_blocks)

    def poll(self) -> list[Completion]:
        """What has completed since the last call, in order of completion."""
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


class _Lane:
    """The queue and threads of one tier."""

    def __init__(
        self,
        tier: Tier,
        queue_blocks: int,
        completions: deque[Completion],
        on_thread_start: Callable[[], None],
    ) -> None:
        self._tier = tier
        self._queue_blocks = queue_blocks
        self._completions = completions
        self._on_thread_start = on_thread_start
        self._queues: tuple[deque[Part], ...] = (deque(), deque(), deque())
        self._wake = threading.Condition()
        self._closed = False
        self.blocks = dict.fromkeys(Direction, 0)
        name = tier.capabilities.name
        self._threads = [
            threading.Thread(target=self._run, name=f"kvtier-{name}-{number}", daemon=True)
            for number in range(tier.capabilities.io_threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, transfer: Transfer, part_blocks: int) -> bool:
        count = len(transfer.keys)
        direction = transfer.direction
        with self._wake:
            if self._closed:
                return False
            full = self.blocks[direction] + count > self._queue_blocks
            if direction is Direction.WRITE and full:
                return False
            self.blocks[direction] += count
            queue = self._queues[_PRIORITY[direction]]
            # A delete moves no bytes: one call.
            step = max(1, count) if direction is Direction.DELETE else part_blocks
            for start in range(0, count, step):
                queue.append((transfer, start, min(start + step, count)))
            self._wake.notify_all()
        return True

    def wait_idle(self, end_s: float) -> bool:
        with self._wake:
            return self._wake.wait_for(
                lambda: not any(self.blocks.values()), max(0.0, end_s - perf_s())
            )

    def shut(self) -> None:
        with self._wake:
            self._closed = True
            # Here, and not in the threads: they may all hang in the tier.
            for queue in self._queues:
                while queue:
                    transfer, start, stop = queue.popleft()
                    self._completions.append(Completion(transfer, start, stop, None, 0.0))
                    self.blocks[transfer.direction] -= stop - start
            self._wake.notify_all()

    def join(self, end_s: float) -> bool:
        for thread in self._threads:
            thread.join(max(0.0, end_s - perf_s()))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        try:
            self._on_thread_start()
        except Exception:
            # A thread with the wrong affinity is slow, a tier without threads is dead.
            _log.exception("a transfer thread could not be set up")
        while (part := self._next()) is not None:
            transfer, start, stop = part
            outcomes: list[Outcome] | None = None
            began_s = perf_s()
            if not transfer.cancelled:
                outcomes = self._perform(transfer, start, stop)
            seconds = perf_s() - began_s
            self._completions.append(Completion(transfer, start, stop, outcomes, seconds))
            with self._wake:
                self.blocks[transfer.direction] -= stop - start
                if not any(self.blocks.values()):
                    self._wake.notify_all()

    def _next(self) -> Part | None:
        with self._wake:
            while True:
                for queue in self._queues:
                    if queue:
                        return queue.popleft()
                if self._closed:
                    return None
                self._wake.wait()

    def _perform(self, transfer: Transfer, start: int, stop: int) -> list[Outcome]:
        tier = self._tier
        try:
            if transfer.direction is Direction.READ:
                outcomes = tier.read_into(transfer.moves[start:stop])
            elif transfer.direction is Direction.DELETE:
                outcomes = tier.delete(transfer.keys[start:stop])
            else:
                outcomes = tier.write_from(transfer.moves[start:stop], transfer.parents[start:stop])
            if len(outcomes) == stop - start:
                return outcomes
            _log.error("tier %s gave a wrong number of outcomes", tier.capabilities.name)
        except Exception:
            # A tier promises not to raise; a bug in one must not end the thread.
            _log.exception("tier %s failed in a transfer", tier.capabilities.name)
        return [Outcome.FAILED] * (stop - start)
