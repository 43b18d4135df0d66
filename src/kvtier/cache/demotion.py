"""Writing blocks down: what each lower tier should keep, and making room for it there.

Write-through: a block is offered to every lower tier as soon as it is whole in RAM, so that
losing the RAM copy, or the process, loses nothing. It is the first thing to give way: when a
tier is slow, offers are dropped and counted, never waited for.

Invariants: a row being written is pinned; `resident + incoming + leaving <= capacity` for each
tier, where `leaving` are blocks the tier has been told to delete and has not confirmed. A block
is not written while an older copy of it is leaving, or still being written from before a
`clear`: a tier keeps the bytes it has, and its calls overtake each other.
"""

from collections import deque
from collections.abc import Sequence

from kvtier.admission.base import AdmissionDecision, AdmissionPolicy
from kvtier.blocks.key import UNKNOWN_PARENT, BlockKey
from kvtier.cache.residency import Residency
from kvtier.index.local import DETACHED, NONE
from kvtier.tiers.base import BlockMove, Capabilities, Outcome
from kvtier.transfer.base import Completion, Direction, Transfer, Transfers


class Demotion:
    """Keeps one lower tier supplied. One thread, never blocks."""

    def __init__(
        self,
        tier: int,
        capabilities: Capabilities,
        admission: AdmissionPolicy,
        residency: Residency,
        engine: Transfers,
    ) -> None:
        self._tier = tier
        self._bit = 1 << tier
        self._capacity = capabilities.capacity_blocks
        self._is_shared = capabilities.shared
        self._admission = admission
        self._residency = residency
        self._engine = engine
        self._waiting: deque[int] = deque()
        self._in_hand: set[int] = set()
        """Rows waiting or being written: pinned."""
        self._incoming = 0
        self._deleting: set[BlockKey] = set()
        self._refused: list[BlockKey] = []
        """Those of `leaving` that the tier failed to delete; told again when room is needed."""
        self._orphans: set[BlockKey] = set()
        """Being written since before a `clear`."""
        self._is_stopped = False
        # A slow tier must not end up pinning all of RAM.
        self._max_in_hand = max(1, min(residency.arena.slots // 2, engine.queue_blocks))
        # More than fits: a bound that was lowered, or a listing with blocks that are gone.
        self._adopted = residency.resident[tier]
        self.delete(residency.make_room(tier, max(0, self._adopted - self._capacity)))

    @property
    def is_waiting(self) -> bool:
        """True if blocks wait for room in the tier."""
        return bool(self._waiting)

    def offer(self, rows: Sequence[int], keys: Sequence[BlockKey]) -> None:
        """Blocks that RAM holds, in prefix order: write down those the tier should keep.

        Before a block go those above it that were dropped earlier: without them it could not be
        found after a restart, and while it stays below, RAM could not let go of them.
        """
        if self._is_stopped:
            return
        index, in_hand, bit = self._residency.index, self._in_hand, self._bit
        held, parent = index.held, index.parent
        counters = self._residency.counters.tiers[self._tier]
        for row, key in zip(rows, keys, strict=True):
            if held[row] & bit or row in in_hand:
                continue
            if self._admission.decide(key) is AdmissionDecision.REJECT:
                counters.rejected_blocks += 1
                continue
            if len(in_hand) >= self._max_in_hand:
                counters.dropped_blocks += 1
                continue
            above = parent[row]
            if above >= 0 and above not in in_hand and not held[above] & bit:
                self._take(self._missing_above(row))
            if not self._take([row]):
                counters.dropped_blocks += 1
        self.flush()

    def flush(self) -> None:
        """Make room where it is short, and submit what fits."""
        if not self._waiting:
            return
        if self._refused:
            refused, self._refused = self._refused, []
            self.delete(refused)
        short = len(self._waiting) - self._room
        if short > 0:
            self.delete(self._residency.make_room(self._tier, short))
        count = min(len(self._waiting), self._room - len(self._deleting))
        if count > 0:
            self._write(self._next_rows(count))
        elif not self._incoming and not self._deleting:
            # Everything down there is pinned or still needed by its children: give way.
            self._give_way()

    def complete(self, completion: Completion) -> None:
        """Settle a finished write or delete of this tier."""
        transfer, outcomes = completion.transfer, completion.outcomes
        part = slice(completion.start, completion.stop)
        rows, keys = transfer.rows[part], transfer.keys[part]
        if transfer.direction is Direction.DELETE:
            self._complete_delete(keys, outcomes)
            return
        self._incoming -= len(rows)
        residency, counters = self._residency, self._residency.counters.tiers[self._tier]
        if outcomes is None:
            counters.dropped_blocks += len(rows)
            written = []
        else:
            written = [row for row, out in zip(rows, outcomes, strict=True) if out is Outcome.DONE]
            counters.fault_blocks += len(rows) - len(written)
        counters.written_blocks += len(written)
        index_keys, held = residency.index.keys, residency.index.held
        # Of a shared tier others may have told meanwhile that it holds a block, or so much else
        # that there is no room left to remember this one.
        fresh = [
            row for row in written if index_keys[row] is not None and not held[row] & self._bit
        ]
        residency.insert(fresh[: self._capacity - residency.resident[self._tier]], self._tier)
        gone = [key for row, key in zip(rows, keys, strict=True) if index_keys[row] is None]
        if gone:
            # Forgotten while it was being written: it must not be found after a restart.
            self._orphans.difference_update(gone)
            self.delete(gone if outcomes is not None else [])
        for row in rows:
            self._in_hand.discard(row)
            residency.unpin(row)

    def delete(self, keys: Sequence[BlockKey]) -> None:
        """Tell the tier to forget `keys`, which the index has forgotten already.

        What others share is theirs, too: it stays, and whoever cleans the storage decides.
        """
        if not keys or self._is_shared:
            return
        self._deleting.update(keys)
        transfer = Transfer(self._tier, Direction.DELETE, [NONE] * len(keys), list(keys))
        if not self._engine.submit(transfer):
            self._refuse(keys)

    def reset(self) -> None:
        """The index is about to forget everything: drop what waits.

        Writes on their way end as they may, and are deleted then. What others share cannot be
        deleted, nor may they get blocks that are made from now on: it is left alone.
        """
        self._is_stopped = self._is_shared
        for row in self._waiting:
            self._in_hand.discard(row)
            self._residency.unpin(row)
        self._waiting.clear()
        keys = self._residency.index.keys
        self._orphans.update(key for row in self._in_hand if (key := keys[row]) is not None)

    @property
    def pinned_blocks(self) -> int:
        """Pins held for writes."""
        return len(self._in_hand)

    @property
    def deleting_blocks(self) -> int:
        """Blocks the tier has been told to delete and has not confirmed."""
        return len(self._deleting)

    def check(self) -> None:
        """Assert the invariants. For tests."""
        resident = self._residency.resident[self._tier]
        bound = max(self._capacity, self._adopted)
        # What is only known takes no room: others may tell of it while a write is on its way.
        incoming = 0 if self._is_shared else self._incoming
        assert resident + incoming + len(self._deleting) <= bound, (
            resident,
            self._incoming,
            len(self._deleting),
        )
        assert len(self._in_hand) == len(self._waiting) + self._incoming
        assert self._orphans.isdisjoint(self._deleting)
        assert self._deleting.issuperset(self._refused)
        keys, held = self._residency.index.keys, self._residency.index.held
        assert not any(
            key in self._deleting or key in self._orphans
            for row, key in enumerate(keys)
            if key is not None and held[row] & self._bit
        ), "a block is held and leaving at once"

    def _take(self, rows: Sequence[int]) -> bool:
        """Pin rows and let them wait, as many as may; False if it is not all of them."""
        for row in rows:
            if len(self._in_hand) >= self._max_in_hand:
                return False
            self._residency.pin(row)
            self._in_hand.add(row)
            self._waiting.append(row)
        return True

    def _missing_above(self, row: int) -> list[int]:
        """The run of ancestors that RAM holds and the tier does not, topmost first."""
        index = self._residency.index
        missing: list[int] = []
        row = index.parent[row]
        while row >= 0 and row not in self._in_hand:
            if not index.held[row] & 1 or index.held[row] & self._bit:
                break
            missing.append(row)
            row = index.parent[row]
        return missing[::-1]

    def _next_rows(self, count: int) -> list[int]:
        """Up to `count` rows that wait, in order, up to one whose older copy is not gone yet."""
        if not self._deleting and not self._orphans:
            return [self._waiting.popleft() for _ in range(count)]
        keys = self._residency.index.keys
        rows: list[int] = []
        while len(rows) < count:
            key = keys[self._waiting[0]]
            if key in self._deleting or key in self._orphans:
                break
            rows.append(self._waiting.popleft())
        return rows

    def _complete_delete(
        self, keys: Sequence[BlockKey], outcomes: Sequence[Outcome] | None
    ) -> None:
        refused = []
        answers: Sequence[Outcome | None] = outcomes or [None] * len(keys)
        for key, outcome in zip(keys, answers, strict=True):
            if outcome is Outcome.DONE or outcome is Outcome.MISSING:
                self._deleting.discard(key)
            else:
                refused.append(key)
        if refused:
            self._residency.counters.tiers[self._tier].fault_blocks += len(refused)
            self._refuse(refused)

    def _refuse(self, keys: Sequence[BlockKey]) -> None:
        """Their room is not free. Whoever waits for it gives way: the next offer tries again."""
        self._refused += keys
        self._give_way()

    def _write(self, rows: list[int]) -> None:
        if not rows:
            return
        index, array = self._residency.index, self._residency.arena.array
        keys: list[BlockKey] = [index.keys[row] for row in rows]  # type: ignore[misc]
        moves = [
            BlockMove(key, array[index.slot[row]]) for row, key in zip(rows, keys, strict=True)
        ]
        parents = [self._parent(row) for row in rows]
        transfer = Transfer(self._tier, Direction.WRITE, rows, keys, moves, parents)
        if self._engine.submit(transfer):
            self._incoming += len(rows)
        else:
            self._give_up(rows)

    def _parent(self, row: int) -> BlockKey | None:
        index = self._residency.index
        parent = index.parent[row]
        if parent >= 0:
            return index.keys[parent]
        return UNKNOWN_PARENT if parent == DETACHED else None

    @property
    def _room(self) -> int:
        return self._capacity - self._residency.resident[self._tier] - self._incoming

    def _give_way(self) -> None:
        self._give_up(list(self._waiting))
        self._waiting.clear()

    def _give_up(self, rows: Sequence[int]) -> None:
        self._residency.counters.tiers[self._tier].dropped_blocks += len(rows)
        for row in rows:
            self._in_hand.discard(row)
            self._residency.unpin(row)
