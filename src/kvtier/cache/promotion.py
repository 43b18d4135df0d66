"""Bringing blocks up from lower tiers for the requests that wait for them.

PENDING in the index is the single flight: a second request for a block that is on its way
joins it. A request waits at most its deadline and asks for each block at most once, so a slow,
failing or lying tier costs it one deadline and never the answer: what did not arrive is a miss.

Invariants: what a request waits for, and what it found ready, stays pinned until the request
loads it or is forgotten; all requests together pin at most half of RAM.
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
    """What one request waits for."""

    deadline_s: float
    pinned: dict[BlockKey, int] = field(default_factory=dict)
    """Key to row, for everything this request pins."""
    asked: set[BlockKey] = field(default_factory=set)
    """Blocks it had a promotion for: not asked for again."""
    origin: dict[BlockKey, int] = field(default_factory=dict)
    """The tier a promoted block came from."""
    transfers: list[Transfer] = field(default_factory=list)
    is_expired: bool = False
    is_cut: bool = False
    """The bound on pins cut short what it asked for last."""
    is_full: bool = False
    """It has to do with what it holds."""


class Promotion:
    """Promotes for requests. One thread, never blocks."""

    def __init__(self, residency: Residency, engine: Transfers, deadline_s: float) -> None:
        self._residency = residency
        self._engine = engine
        self._deadline_s = deadline_s
        self._waits: dict[str, _Wait] = {}
        self._pinned = 0
        self._max_pinned = max(1, residency.arena.slots // 2)

    def presence(self, request: str, key: BlockKey, now_s: float) -> Presence:
        """`LocalIndex.presence` as this request may see it: its deadline and its one try count."""
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
            key in wait.asked or (wait.is_full and key not in wait.pinned)
        ):
            return Presence.ABSENT
        return found

    def promote(self, request: str, keys: Sequence[BlockKey], now_s: float) -> None:
        """Bring up those of `keys` that lie below RAM, and hold on to the others.

        Where RAM has no room now, nothing happens: the request may ask again until its
        deadline. The deadline runs from the first call. So it may where the bound on pins cuts
        `keys` short, while others get on and will release theirs; where all wait for each
        other's, this one has to do with what it holds, and the rest is absent for it.
        """
        self.begin(request, now_s)
        wait = self._waits[request]
        if now_s >= wait.deadline_s:
            return
        index = self._residency.index
        below: dict[int, None] = {}
        wait.is_cut = False
        for key in keys:
            row = index.rows.get(key)
            if row is None or index.state[row] == HOLE:
                continue
            is_below = index.state[row] == IDLE and not index.held[row] & 1
            if is_below and key in wait.asked:
                break
            if key not in wait.pinned:
                if self._pinned >= self._max_pinned:
                    self._cut(wait)
                    break
                wait.pinned[key] = row
                self._pinned += 1
                self._residency.pin(row)
            if is_below:
                # New, or one whose promotion this request had joined and another cancelled.
                below[row] = None
        if below:
            self._fetch(wait, list(below))

    def begin(self, request: str, now_s: float) -> None:
        """The request's deadline runs from the first call on."""
        if request not in self._waits:
            self._waits[request] = _Wait(now_s + self._deadline_s)

    def may_wait(self, request: str, key: BlockKey, now_s: float) -> bool:
        """Whether the request has time left, and has not had its try at this block."""
        wait = self._waits.get(request)
        return wait is None or (now_s < wait.deadline_s and key not in wait.asked)

    def origin(self, request: str, key: BlockKey) -> int:
        """The tier that supplied a block to this request: RAM unless it was promoted for it."""
        wait = self._waits.get(request)
        return wait.origin.get(key, RAM) if wait is not None else RAM

    def complete(self, completion: Completion) -> None:
        """Settle finished reads."""
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
            is_gone = outcome in (Outcome.CORRUPT, Outcome.MISSING)
            if is_gone and index.held[row] >> transfer.tier & 1:
                residency.remove(row, transfer.tier)
            else:
                index.prune(row)
        counters.read_blocks += len(arrived)
        residency.insert(arrived, RAM)

    def release(self, request: str) -> None:
        """Release every pin of the request; promotions nobody else waits for are cancelled."""
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
        """Let go of every block; the deadlines of those who wait run on."""
        for request, wait in list(self._waits.items()):
            self.release(request)
            self._waits[request] = _Wait(wait.deadline_s, is_expired=wait.is_expired)

    @property
    def pinned_blocks(self) -> int:
        """Pins that requests hold; a block counts once for each."""
        return self._pinned

    def _cut(self, wait: _Wait) -> None:
        wait.is_cut = True
        if wait.pinned:
            others = (other for other in self._waits.values() if other is not wait)
            wait.is_full = all(
                other.is_cut and not other.is_full for other in others if other.pinned
            )

    def _fetch(self, wait: _Wait, rows: list[int]) -> None:
        slots = self._residency.take_slots(rows)
        if slots is None:
            self._undo(wait, rows)
            return
        index, array = self._residency.index, self._residency.arena.array
        by_tier: dict[int, list[int]] = {}
        for row, slot in zip(rows, slots, strict=True):
            key = index.keys[row]
            assert key is not None
            index.slot[row] = slot
            index.state[row] = PROMOTING
            # The fastest tier that holds it: the lowest bit above RAM's.
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

    def _undo(self, wait: _Wait, rows: list[int]) -> None:
        for row in rows:
            key = self._residency.index.keys[row]
            assert key is not None
            del wait.pinned[key]
            self._pinned -= 1
            self._residency.unpin(row)
