"""A transfer engine without threads, on virtual time: the same seed gives the same run.

With threads, the order of events is left to chance. Here it is drawn from a seed and worse than on
any machine: transfers begin and end in any order, even those of one key, and the change of a tier
and the moment when the cache learns of it lie apart. Invariants: those of `transfer.base`; nothing
happens outside `poll`, `drain` and `close`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kvtier.clock import Clock, seeded
from kvtier.tiers.base import Outcome, SharedTier, Tier
from kvtier.transfer.base import Completion, Direction, Transfer
from kvtier.transfer.breaker import BreakerState


@dataclass(slots=True, eq=False)
class _TransferPart:
    transfer: Transfer
    start: int
    stop: int
    begin_s: float
    end_s: float
    has_begun: bool = False
    outcomes: list[Outcome] | None = None


class InlineTransfers:
    """A `transfer.base.Transfers` on `clock`; a part begins and ends at most `delay_s` late.

    One in `stall_every` parts takes `stall_s` instead, like a tier that hangs; 0: none.
    """

    def __init__(
        self,
        tiers: Sequence[Tier],
        clock: Clock,
        *,
        seed: int = 0,
        queue_blocks: int = 4096,
        part_blocks: int = 3,
        delay_s: float = 0.0,
        stall_s: float = 60.0,
        stall_every: int = 0,
    ) -> None:
        self.queue_blocks = queue_blocks
        self._tiers = tiers
        self._clock = clock
        self._rng = seeded(seed)
        self._part_blocks = part_blocks
        self._delay_s = delay_s
        self._stall_s = stall_s
        self._stall_every = stall_every
        self._parts: list[_TransferPart] = []
        self._blocks = [dict.fromkeys(Direction, 0) for _ in tiers]
        self._completions: list[Completion] = []
        self._is_closed = False

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits, runs, or is to be polled."""
        return not self._parts and not self._completions

    def submit(self, transfer: Transfer) -> bool:
        """Accept or refuse a transfer; draw when each part begins and when it ends."""
        count = len(transfer.keys)
        blocks = self._blocks[transfer.tier - 1]
        is_write = transfer.direction is Direction.WRITE
        if self._is_closed or (is_write and blocks[transfer.direction] + count > self.queue_blocks):
            return False
        blocks[transfer.direction] += count
        # A chain is found as a whole.
        step = max(1, count) if transfer.direction is Direction.FIND else self._part_blocks
        for start in range(0, count, step):
            begin_s = self._clock.now_s() + self._rng.uniform(0.0, self._delay_s)
            end_s = begin_s + self._rng.uniform(0.0, self._delay_s)
            if self._stall_every and not self._rng.randrange(self._stall_every):
                end_s += self._stall_s
            stop = min(start + step, count)
            self._parts.append(_TransferPart(transfer, start, stop, begin_s, end_s))
        return True

    def poll(self) -> list[Completion]:
        """Perform what is due, in the order drawn, and return the parts that have ended."""
        self._run(self._clock.now_s())
        done, self._completions = self._completions, []
        return done

    def cancel(self, transfer: Transfer) -> None:
        """Mark a transfer as cancelled; parts that have not begun end without outcomes."""
        transfer.cancelled = True

    def queued_blocks(self, tier: int, direction: Direction) -> int:
        """Return the number of blocks of `tier` in this direction that have not ended."""
        return self._blocks[tier - 1][direction]

    def breaker(self, tier: int, direction: Direction) -> BreakerState:
        """Return CLOSED: every fault reaches the cache."""
        return BreakerState.CLOSED

    def drain(self, deadline_s: float) -> bool:
        """Perform everything now, whatever `deadline_s` is; the results can be polled."""
        self._run(float("inf"))
        return True

    def close(self, deadline_s: float) -> bool:
        """Cancel all transfers and drain them."""
        self._is_closed = True
        for part in self._parts:
            part.transfer.cancelled = True
        return self.drain(deadline_s)

    def _run(self, until_s: float) -> None:
        """Begin and end parts in the order of time; at equal times, begin first."""
        due = [(part.begin_s, 0, part) for part in self._parts if not part.has_begun]
        due += [(part.end_s, 1, part) for part in self._parts]
        for at_s, is_end, part in sorted(due, key=lambda moment: moment[:2]):
            if at_s > until_s:
                break
            if is_end:
                self._end(part)
            else:
                part.has_begun = True
                if not part.transfer.cancelled:
                    part.outcomes = self._perform(part)

    def _end(self, part: _TransferPart) -> None:
        transfer = part.transfer
        self._parts.remove(part)
        self._blocks[transfer.tier - 1][transfer.direction] -= part.stop - part.start
        self._completions.append(
            Completion(transfer, part.start, part.stop, part.outcomes, part.end_s - part.begin_s)
        )

    def _perform(self, part: _TransferPart) -> list[Outcome]:
        transfer, chosen = part.transfer, slice(part.start, part.stop)
        tier = self._tiers[transfer.tier - 1]
        if transfer.direction is Direction.FIND:
            assert isinstance(tier, SharedTier)
            return tier.find(transfer.keys[chosen])
        if transfer.direction is Direction.READ:
            return tier.read_into(transfer.moves[chosen])
        if transfer.direction is Direction.DELETE:
            return tier.delete(transfer.keys[chosen])
        return tier.write_from(transfer.moves[chosen], transfer.parents[chosen])
