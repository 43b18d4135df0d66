"""Promotion: reads blocks from lower tiers into RAM for the requests that wait for them.

A block is read once at a time: a second request for a block that is PENDING in the index waits
for the same read. A request waits at most until its deadline and reads each block at most once,
so a slow, failing or inconsistent tier delays it by one deadline at most; blocks that did not
arrive are misses.

Invariants: the blocks that a request waits for or found ready stay pinned until the request
loads them or is released; all requests together pin at most half of RAM.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from kvtier.blocks.key import BlockKey
from kvtier.cache.residency import Residency
from kvtier.index.local import DISCARDED, HOLE, IDLE, PROMOTING, RAM, Presence
from kvtier.tiers.base import BlockMove, Outcome
from kvtier.transfer.base import Completion, Direction, Transfer, Transfers


@dataclass(slots=True)
class _Wait:
    """The blocks that one request waits for or holds."""

    deadline_s: float
    pinned: dict[BlockKey, int] = field(default_factory=dict)
    """Key to row of every block that the request pins."""
    asked: set[BlockKey] = field(default_factory=set)
    """Blocks that were read for the request once, and are not read for it again."""
    origin: dict[BlockKey, int] = field(default_factory=dict)
    """The tier from which each promoted block was read."""
    transfers: list[Transfer] = field(default_factory=list)
    is_expired: bool = False
    hit_pin_limit: bool = False
    """The bound on pins cut its latest `promote` short."""
    is_limited: bool = False
    """It gets no more blocks and goes on with those it holds."""


class Promotion:
    """The promotions of all requests. Belongs to one thread and never blocks."""

    def __init__(self, residency: Residency, engine: Transfers, deadline_s: float) -> None:
        self._residency = residency
        self._engine = engine
        self._deadline_s = deadline_s
        self._waits: dict[str, _Wait] = {}
        self._pinned = 0
        self._max_pinned = max(1, residency.arena.slots // 2)

    def presence(self, request: str, key: BlockKey, now_s: float) -> Presence:
        """Return where a block is for `request`; see `LocalIndex.presence`.

        A block is ABSENT for a request that is past its deadline, and for one whose read of
        the block failed.
        """
        found = self._residency.index.presence(key)
        if found is Presence.READY or found is Presence.ABSENT:
            return found
        wait = self._waits.get(request)
        if wait is None:
            return found
        if now_s >= wait.deadline_s:
            if not wait.is_expired:
                wait.is_expired = True
                self._residency.counters.expired_promotions += 1
            return Presence.ABSENT
        if found is Presence.BELOW and (
            key in wait.asked or (wait.is_limited and key not in wait.pinned)
        ):
            return Presence.ABSENT
        return found

    def promote(self, request: str, keys: Sequence[BlockKey], now_s: float) -> None:
        """Read those of `keys` that only lower tiers hold into RAM, and pin the others.

        The deadline of `request` runs from the first call. If RAM has no room, nothing is
        read, and the request may try again until its deadline. The same holds if the bound on
        pins cuts `keys` short, as long as another request can proceed and release its pins. If
        all requests wait for each other's pins, this one gets no more blocks: it goes on with
        those it holds, and the others are absent for it.
        """
        self.start_deadline(request, now_s)
        wait = self._waits[request]
        if now_s >= wait.deadline_s:
            return
        index = self._residency.index
        below: dict[int, None] = {}
        wait.hit_pin_limit = False
        for key in keys:
            row = index.rows.get(key)
            if row is None or index.state[row] == HOLE:
                continue
            is_below = index.state[row] == IDLE and not index.held[row] & 1
            if is_below and key in wait.asked:
                break
            if key not in wait.pinned:
                if self._pinned >= self._max_pinned:
                    self._reach_pin_limit(wait)
                    break
                wait.pinned[key] = row
                self._pinned += 1
                self._residency.pin(row)
            if is_below:
                # It was not read before, or another request's read that this one shared was
                # cancelled.
                below[row] = None
        if below:
            self._fetch(wait, list(below))

    def start_deadline(self, request: str, now_s: float) -> None:
        """Set the deadline of `request`, unless it has one."""
        if request not in self._waits:
            self._waits[request] = _Wait(now_s + self._deadline_s)

    def may_wait(self, request: str, key: BlockKey, now_s: float) -> bool:
        """Return True if the request is before its deadline and has not read this block."""
        wait = self._waits.get(request)
        return wait is None or (now_s < wait.deadline_s and key not in wait.asked)

    def origin(self, request: str, key: BlockKey) -> int:
        """Return the tier that supplied `key` to `request`: RAM unless the block was promoted."""
        wait = self._waits.get(request)
        return wait.origin.get(key, RAM) if wait is not None else RAM

    def complete(self, completion: Completion) -> None:
        """Record the outcome of reads, and insert the blocks that arrived into RAM."""
        transfer, residency = completion.transfer, self._residency
        index, counters = residency.index, residency.counters.tiers[transfer.tier]
        rows = transfer.rows[completion.start : completion.stop]
        outcomes: Sequence[Outcome | None] = completion.outcomes or [None] * len(rows)
        arrived: list[int] = []
        for row, outcome in zip(rows, outcomes, strict=True):
            if index.state[row] == DISCARDED:
                residency.free_slot(row)
                index.free_discarded(row)
                continue
            index.state[row] = IDLE
            if outcome is Outcome.DONE:
                arrived.append(row)
                continue
            residency.free_slot(row)
            counters.corrupt_blocks += outcome is Outcome.CORRUPT
            counters.missing_blocks += outcome is Outcome.MISSING
            counters.fault_blocks += outcome is Outcome.FAILED
            is_lost = outcome in (Outcome.CORRUPT, Outcome.MISSING)
            if is_lost and index.held[row] >> transfer.tier & 1:
                residency.remove(row, transfer.tier)
            else:
                index.prune(row)
        counters.read_blocks += len(arrived)
        residency.insert(arrived, RAM)

    def release(self, request: str) -> None:
        """Release all pins of the request, and cancel reads that no other request waits for."""
        wait = self._waits.pop(request, None)
        if wait is None:
            return
        pins = self._residency.index.pins
        for row in wait.pinned.values():
            self._residency.unpin(row)
        self._pinned -= len(wait.pinned)
        for transfer in wait.transfers:
            if not any(pins[row] for row in transfer.rows):
                self._engine.cancel(transfer)

    def reset(self) -> None:
        """Release the pins of all requests. Their deadlines stay in force."""
        for request, wait in list(self._waits.items()):
            self.release(request)
            self._waits[request] = _Wait(wait.deadline_s, is_expired=wait.is_expired)

    @property
    def pinned_blocks(self) -> int:
        """The number of pins that requests hold. A block counts once per request."""
        return self._pinned

    def _reach_pin_limit(self, wait: _Wait) -> None:
        wait.hit_pin_limit = True
        if wait.pinned:
            others = (other for other in self._waits.values() if other is not wait)
            wait.is_limited = all(
                other.hit_pin_limit and not other.is_limited for other in others if other.pinned
            )

    def _fetch(self, wait: _Wait, rows: list[int]) -> None:
        slots = self._residency.take_slots(rows)
        if slots is None:
            self._unpin(wait, rows)
            return
        index, array = self._residency.index, self._residency.arena.array
        by_tier: dict[int, list[int]] = {}
        for row, slot in zip(rows, slots, strict=True):
            key = index.keys[row]
            assert key is not None
            index.slot[row] = slot
            index.state[row] = PROMOTING
            # The lowest bit set above RAM's is the fastest lower tier that holds the block.
            tier = (index.held[row] & -index.held[row]).bit_length() - 1
            wait.asked.add(key)
            wait.origin[key] = tier
            by_tier.setdefault(tier, []).append(row)
        for tier, group in by_tier.items():
            keys = [key for row in group if (key := index.keys[row]) is not None]
            slots = [index.slot[row] for row in group]
            moves = [BlockMove(key, array[slot]) for key, slot in zip(keys, slots, strict=True)]
            transfer = Transfer(tier, Direction.READ, group, keys, moves)
            wait.transfers.append(transfer)
            if not self._engine.submit(transfer):
                self.complete(Completion(transfer, 0, len(group), None, 0.0))

    def _unpin(self, wait: _Wait, rows: list[int]) -> None:
        for row in rows:
            key = self._residency.index.keys[row]
            assert key is not None
            del wait.pinned[key]
            self._pinned -= 1
            self._residency.unpin(row)
