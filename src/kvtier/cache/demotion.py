"""Writing blocks down: what each lower tier should keep, and making room for it there.

Write-through: a block is offered to every lower tier as soon as it is whole in RAM, so that
losing the RAM copy, or the process, loses nothing. It is the first thing to give way: when a
tier is slow, offers are dropped and counted, never waited for.

Invariants: a row being written is pinned; `resident + incoming + leaving <= capacity` for each
tier, where `leaving` are blocks the tier has been told to delete and has not confirmed.
"""

from collections import deque
from collections.abc import Sequence

from kvtier.admission.base import AdmissionPolicy, Decision
from kvtier.blocks.key import BlockKey
from kvtier.cache.residency import Residency
from kvtier.index.local import NONE
from kvtier.tiers.base import Move, Outcome
from kvtier.transfer.engine import TransferEngine
from kvtier.transfer.job import Completion, Direction, Transfer


class Demotion:
    """Keeps one lower tier supplied. One thread, never blocks."""

    def __init__(
        self,
        tier: int,
        capacity_blocks: int,
        admission: AdmissionPolicy,
        residency: Residency,
        engine: TransferEngine,
    ) -> None:
        self._tier = tier
        self._bit = 1 << tier
        self._capacity = capacity_blocks
        self._admission = admission
        self._residency = residency
        self._engine = engine
        self._waiting: deque[int] = deque()
        self._in_hand: set[int] = set()
        """Rows waiting or being written: pinned."""
        self._incoming = 0
        self._leaving = 0
        # A slow tier must not end up pinning all of RAM.
        self._max_in_hand = max(1, residency.arena.slots // 2)

    @property
    def is_waiting(self) -> bool:
        """True if blocks wait for room in the tier."""
        return bool(self._waiting)

    def offer(self, rows: Sequence[int], keys: Sequence[BlockKey]) -> None:
        """Blocks that RAM holds, in prefix order: write down those the tier should keep."""
        held, in_hand = self._residency.index.held, self._in_hand
        counters = self._residency.counters.tiers[self._tier]
        for row, key in zip(rows, keys, strict=True):
            if held[row] & self._bit or row in in_hand:
                continue
            if self._admission.decide(key) is Decision.REJECT:
                counters.rejected_blocks += 1
            elif len(in_hand) >= self._max_in_hand:
                counters.dropped_blocks += 1
            else:
                self._residency.pin(row)
                in_hand.add(row)
                self._waiting.append(row)
        self.flush()

    def flush(self) -> None:
        """Make room where it is short, and submit what fits."""
        waiting = len(self._waiting)
        if not waiting:
            return
        room = self._capacity - self._residency.resident[self._tier] - self._incoming
        if waiting > room:
            self.delete(self._residency.make_room(self._tier, waiting - room))
            room = self._capacity - self._residency.resident[self._tier] - self._incoming
        count = min(waiting, room - self._leaving)
        if count > 0:
            self._write([self._waiting.popleft() for _ in range(count)])
        elif not self._incoming and not self._leaving:
            # Everything down there is pinned or still needed by its children: give way.
            self._give_up([self._waiting.popleft() for _ in range(waiting)])

    def complete(self, completion: Completion) -> None:
        """Settle a finished write or delete of this tier."""
        rows = completion.transfer.rows[completion.start : completion.stop]
        if completion.transfer.direction is Direction.DELETE:
            self._leaving -= completion.stop - completion.start
            return
        self._incoming -= len(rows)
        residency, counters = self._residency, self._residency.counters.tiers[self._tier]
        outcomes = completion.outcomes or [None] * len(rows)
        written = [row for row, out in zip(rows, outcomes, strict=True) if out is Outcome.DONE]
        counters.written_blocks += len(written)
        if completion.outcomes is None:
            counters.dropped_blocks += len(rows)
        else:
            counters.fault_blocks += len(rows) - len(written)
        index = residency.index
        gone = [row for row in written if index.keys[row] is None]
        residency.enter((row for row in written if index.keys[row] is not None), self._tier)
        if gone:
            # Forgotten while it was being written: it must not be found after a restart.
            keys = completion.transfer.keys
            self.delete([keys[completion.transfer.rows.index(row)] for row in gone])
        for row in rows:
            self._in_hand.discard(row)
            residency.unpin(row)

    def delete(self, keys: Sequence[BlockKey]) -> None:
        """Tell the tier to forget `keys`, which the index has forgotten already."""
        if keys:
            self._leaving += len(keys)
            self._engine.submit(
                Transfer(self._tier, Direction.DELETE, [NONE] * len(keys), list(keys))
            )

    def clear(self) -> None:
        """The index forgot everything: drop what waits. Writes on their way end as they may."""
        for row in self._waiting:
            self._in_hand.discard(row)
            self._residency.unpin(row)
        self._waiting.clear()

    def _write(self, rows: list[int]) -> None:
        index, array = self._residency.index, self._residency.arena.array
        keys = [index.keys[row] for row in rows]
        parents = [index.keys[index.parent[row]] if index.parent[row] >= 0 else None for row in rows]
        moves = [Move(key, array[index.slot[row]]) for row, key in zip(rows, keys, strict=True)]  # type: ignore[arg-type]
        transfer = Transfer(self._tier, Direction.WRITE, rows, keys, moves, parents)  # type: ignore[arg-type]
        if self._engine.submit(transfer):
            self._incoming += len(rows)
        else:
            self._give_up(rows)

    def _give_up(self, rows: list[int]) -> None:
        self._residency.counters.tiers[self._tier].dropped_blocks += len(rows)
        for row in rows:
            self._in_hand.discard(row)
            self._residency.unpin(row)
