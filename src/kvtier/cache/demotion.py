"""Demotion: writes blocks to a lower tier and evicts others there to make room.

Writing is write-through: a block is offered to every lower tier as soon as it is whole in RAM,
so that nothing is lost with the RAM copy or the process. Demotion has the lowest priority: when
a tier is slow, offers are dropped and counted instead of delaying anything.

Invariants: a row being written is pinned; `resident + incoming + deleting <= capacity` for each
tier, where `deleting` counts blocks whose deletion the tier has not confirmed yet. A block is
not written while its older copy is being deleted, or is still being written since before a
`reset`: a tier keeps the bytes it has for a key, and its calls may overtake each other.
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
    """The writes and deletions of one lower tier. Belongs to one thread and never blocks."""

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
        self._pinned: set[int] = set()
        """Rows that wait or are being written."""
        self._incoming = 0
        self._deleting: set[BlockKey] = set()
        self._failed_deletes: list[BlockKey] = []
        """Keys of `_deleting` whose deletion failed; retried when room is needed."""
        self._stale_writes: set[BlockKey] = set()
        """Keys being written since before a `reset`."""
        self._is_disabled = False
        # A slow tier must not end up pinning all of RAM.
        self._max_pinned = max(1, min(residency.arena.slots // 2, engine.queue_blocks))
        # The tier may hold more than fits: its capacity was lowered, or its listing is stale.
        self._adopted = residency.resident[tier]
        self.delete(residency.make_room(tier, max(0, self._adopted - self._capacity)))

    @property
    def is_waiting(self) -> bool:
        """True if blocks wait for room in the tier."""
        return bool(self._waiting)

    def offer(self, rows: Sequence[int], keys: Sequence[BlockKey]) -> None:
        """Write those of the given RAM blocks that admission lets in; they are in prefix order.

        Ancestors whose write was dropped earlier are written first. Without them the block
        would not be found after a restart, and RAM could not evict them before it.
        """
        if self._is_disabled:
            return
        index, pinned, bit = self._residency.index, self._pinned, self._bit
        held, parent = index.held, index.parent
        counters = self._residency.counters.tiers[self._tier]
        for row, key in zip(rows, keys, strict=True):
            if held[row] & bit or row in pinned:
                continue
            if self._admission.decide(key) is AdmissionDecision.REJECT:
                counters.rejected_blocks += 1
                continue
            if len(pinned) >= self._max_pinned:
                counters.dropped_blocks += 1
                continue
            above = parent[row]
            if above >= 0 and above not in pinned and not held[above] & bit:
                self._enqueue(self._missing_ancestors(row))
            if not self._enqueue([row]):
                counters.dropped_blocks += 1
        self.flush()

    def flush(self) -> None:
        """Evict to make room for the waiting blocks, and submit the writes that fit."""
        if not self._waiting:
            return
        if self._failed_deletes:
            failed, self._failed_deletes = self._failed_deletes, []
            self.delete(failed)
        short = len(self._waiting) - self._room
        if short > 0:
            self.delete(self._residency.make_room(self._tier, short))
        count = min(len(self._waiting), self._room - len(self._deleting))
        if count > 0:
            self._write(self._next_rows(count))
        elif not self._incoming and not self._deleting:
            # Every block in the tier is pinned or has children there: there will be no room.
            self._abandon_waiting()

    def complete(self, completion: Completion) -> None:
        """Record the outcome of a write or deletion."""
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
        # A query of a shared tier may have inserted the same blocks meanwhile, or so many
        # others that the index has no room left for these.
        fresh = [
            row for row in written if index_keys[row] is not None and not held[row] & self._bit
        ]
        residency.insert(fresh[: self._capacity - residency.resident[self._tier]], self._tier)
        stale = [key for row, key in zip(rows, keys, strict=True) if index_keys[row] is None]
        if stale:
            # Reset while being written: they must not be found after a restart.
            self._stale_writes.difference_update(stale)
            self.delete(stale if outcomes is not None else [])
        for row in rows:
            self._pinned.discard(row)
            residency.unpin(row)

    def delete(self, keys: Sequence[BlockKey]) -> None:
        """Delete `keys`, which have left the index already, from the tier.

        Nothing is deleted from a shared tier: other engines use its blocks as well, and
        `kvtier evict` bounds its size.
        """
        if not keys or self._is_shared:
            return
        self._deleting.update(keys)
        transfer = Transfer(self._tier, Direction.DELETE, [NONE] * len(keys), list(keys))
        if not self._engine.submit(transfer):
            self._record_failed_deletes(keys)

    def reset(self) -> None:
        """Prepare for a reset of the index: abandon the blocks that wait to be written.

        Writes in progress continue, and their blocks are deleted when they end. A shared tier
        is not written any more, see `TieredCache.reset`.
        """
        self._is_disabled = self._is_shared
        for row in self._waiting:
            self._pinned.discard(row)
            self._residency.unpin(row)
        self._waiting.clear()
        keys = self._residency.index.keys
        self._stale_writes.update(key for row in self._pinned if (key := keys[row]) is not None)

    @property
    def pinned_blocks(self) -> int:
        """The number of rows pinned for writes."""
        return len(self._pinned)

    @property
    def deleting_blocks(self) -> int:
        """The number of blocks whose deletion the tier has not confirmed."""
        return len(self._deleting)

    def check(self) -> None:
        """Assert the invariants of this module. O(rows): for tests."""
        resident = self._residency.resident[self._tier]
        bound = max(self._capacity, self._adopted)
        # A write in progress takes no room in a shared tier: a query may insert its block first.
        incoming = 0 if self._is_shared else self._incoming
        assert resident + incoming + len(self._deleting) <= bound, (
            resident,
            self._incoming,
            len(self._deleting),
        )
        assert len(self._pinned) == len(self._waiting) + self._incoming
        assert self._stale_writes.isdisjoint(self._deleting)
        assert self._deleting.issuperset(self._failed_deletes)
        keys, held = self._residency.index.keys, self._residency.index.held
        assert not any(
            key in self._deleting or key in self._stale_writes
            for row, key in enumerate(keys)
            if key is not None and held[row] & self._bit
        ), "the index lists a block that is being deleted"

    def _enqueue(self, rows: Sequence[int]) -> bool:
        """Pin rows and queue them up to the limit; return False if some did not fit."""
        for row in rows:
            if len(self._pinned) >= self._max_pinned:
                return False
            self._residency.pin(row)
            self._pinned.add(row)
            self._waiting.append(row)
        return True

    def _missing_ancestors(self, row: int) -> list[int]:
        """Return the nearest ancestors that RAM holds and the tier lacks, topmost first."""
        index = self._residency.index
        missing: list[int] = []
        row = index.parent[row]
        while row >= 0 and row not in self._pinned:
            if not index.held[row] & 1 or index.held[row] & self._bit:
                break
            missing.append(row)
            row = index.parent[row]
        return missing[::-1]

    def _next_rows(self, count: int) -> list[int]:
        """Take up to `count` waiting rows, stopping before one that still has an older copy."""
        if not self._deleting and not self._stale_writes:
            return [self._waiting.popleft() for _ in range(count)]
        keys = self._residency.index.keys
        rows: list[int] = []
        while len(rows) < count:
            key = keys[self._waiting[0]]
            if key in self._deleting or key in self._stale_writes:
                break
            rows.append(self._waiting.popleft())
        return rows

    def _complete_delete(
        self, keys: Sequence[BlockKey], outcomes: Sequence[Outcome] | None
    ) -> None:
        failed = []
        answers: Sequence[Outcome | None] = outcomes or [None] * len(keys)
        for key, outcome in zip(keys, answers, strict=True):
            if outcome is Outcome.DONE or outcome is Outcome.MISSING:
                self._deleting.discard(key)
            else:
                failed.append(key)
        if failed:
            self._residency.counters.tiers[self._tier].fault_blocks += len(failed)
            self._record_failed_deletes(failed)

    def _record_failed_deletes(self, keys: Sequence[BlockKey]) -> None:
        """Keep `keys` for a retry. They still occupy room, so the waiting writes are abandoned."""
        self._failed_deletes += keys
        self._abandon_waiting()

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
            self._abandon(rows)

    def _parent(self, row: int) -> BlockKey | None:
        index = self._residency.index
        parent = index.parent[row]
        if parent >= 0:
            return index.keys[parent]
        return UNKNOWN_PARENT if parent == DETACHED else None

    @property
    def _room(self) -> int:
        return self._capacity - self._residency.resident[self._tier] - self._incoming

    def _abandon_waiting(self) -> None:
        self._abandon(list(self._waiting))
        self._waiting.clear()

    def _abandon(self, rows: Sequence[int]) -> None:
        self._residency.counters.tiers[self._tier].dropped_blocks += len(rows)
        for row in rows:
            self._pinned.discard(row)
            self._residency.unpin(row)
