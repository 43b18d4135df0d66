"""Moves batches between RAM and the lower tiers on threads, so that no caller ever waits.

Invariants:
* every block of an accepted transfer appears in exactly one completion, also when a tier
  raises, also at close (those in a call that never returns excepted: its thread is a daemon);
* the queue of writes is bounded in blocks; reads are refused by an open breaker only.
"""

from collections import deque
from collections.abc import Callable, Sequence

from kvtier.clock import perf_s
from kvtier.tiers.base import Tier
from kvtier.transfer.breaker import State
from kvtier.transfer.job import Completion, Direction, Transfer
from kvtier.transfer.lane import Lane

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
            Lane(tier, queue_blocks, part_blocks, self._completions, start, hang_s)
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

    def breaker(self, tier: int, direction: Direction) -> State:
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
