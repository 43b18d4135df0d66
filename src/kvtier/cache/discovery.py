"""Discovery: finds the blocks that other processes wrote to a shared tier.

The index lists the blocks that this process wrote or found. For all others, the prefix chain of
a request is queried on I/O threads while the request waits. Blocks that are found enter the
index. Blocks that are not found are recorded as absent for `recheck_s` seconds, which limits
the number of queries and bounds how late another host's write is noticed.

Invariants: at most one query for a block is in progress; no request waits past its deadline;
the index lists at most `capacity_blocks` of a shared tier, and evicts the least recently used.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from kvtier.blocks.key import BlockKey
from kvtier.cache.residency import Residency
from kvtier.index.local import HOLE, IDLE, NONE
from kvtier.tiers.base import Capabilities, Outcome
from kvtier.transfer.base import Completion, Direction, Transfer, Transfers

_SWEEP_AT: Final = 65_536
"""Number of absent blocks above which expired records are removed."""


class TierDiscovery:
    """The queries of one shared tier. Belongs to one thread and never blocks."""

    def __init__(
        self,
        tier: int,
        capabilities: Capabilities,
        residency: Residency,
        engine: Transfers,
    ) -> None:
        self._tier = tier
        self._bit = 1 << tier
        self._capacity = capabilities.capacity_blocks
        self._recheck_s = capabilities.recheck_s
        self._residency = residency
        self._engine = engine
        self._absent: dict[BlockKey, float] = {}
        """Key to the time from which it may be queried again, soonest first."""
        self._querying: set[BlockKey] = set()
        self._is_disabled = False

    def is_known(self, key: BlockKey, now_s: float) -> bool:
        """Return True if `key` needs no query: it was absent lately, or the tier is disabled."""
        return self._is_disabled or self._absent.get(key, now_s) > now_s

    def query(
        self, chain: Sequence[BlockKey], now_s: float, parent: BlockKey | None = None
    ) -> None:
        """Query the tier for a prefix chain, unless all of it is known.

        `parent` precedes the first block of `chain`. The query names the whole chain, because
        a tier may find a block only by way of its predecessors.
        """
        rows, held, bit = self._residency.index.rows, self._residency.index.held, self._bit
        if self._querying.intersection(chain) or all(
            self.is_known(key, now_s) or ((row := rows.get(key)) is not None and held[row] & bit)
            for key in chain
        ):
            return
        parents = [parent, *chain[:-1]]
        transfer = Transfer(
            self._tier, Direction.FIND, [NONE] * len(chain), list(chain), parents=parents
        )
        if self._engine.submit(transfer):
            self._querying.update(chain)
        else:
            self._record_absent(chain, now_s)

    def complete(self, completion: Completion, now_s: float) -> None:
        """Record the result of a query. Blocks whose query failed count as absent."""
        chain = completion.transfer.keys
        self._querying.difference_update(chain)
        if self._is_disabled:
            return
        outcomes: Sequence[Outcome | None] = completion.outcomes or [None] * len(chain)
        counters = self._residency.counters.tiers[self._tier]
        counters.fault_blocks += sum(outcome is Outcome.FAILED for outcome in outcomes)
        counters.corrupt_blocks += sum(outcome is Outcome.CORRUPT for outcome in outcomes)
        found = [outcome is Outcome.DONE for outcome in outcomes]
        absent = (key for key, is_held in zip(chain, found, strict=True) if not is_held)
        self._record_absent(absent, now_s)
        self._insert_found(completion.transfer, found)

    def disable(self) -> None:
        """Stop using the tier's blocks until the process ends."""
        self._is_disabled = True
        self._absent.clear()

    def _record_absent(self, absent: Iterable[BlockKey], now_s: float) -> None:
        for key in absent:
            # Remove it first, so that the new entry goes to the end of the dict.
            self._absent.pop(key, None)
            self._absent[key] = now_s + self._recheck_s
        if len(self._absent) > _SWEEP_AT:
            self._absent = {key: at_s for key, at_s in self._absent.items() if at_s > now_s}

    def _insert_found(self, answered: Transfer, found: Sequence[bool]) -> None:
        """Insert the blocks that were found into the index, in prefix order."""
        index, bit = self._residency.index, self._bit
        fresh: list[int] = []
        for key, parent, is_held in zip(answered.keys, answered.parents, found, strict=True):
            if is_held:
                self._absent.pop(key, None)
                row = index.rows.get(key, NONE)
                if row == NONE or index.state[row] == HOLE:
                    row = index.add(key, parent, IDLE)
                if not index.held[row] & bit:
                    fresh.append(row)
        short = len(fresh) + self._residency.resident[self._tier] - self._capacity
        if short > 0:
            self._residency.make_room(self._tier, short)
            room = max(0, self._capacity - self._residency.resident[self._tier])
            for row in reversed(fresh[room:]):
                index.prune(row)
            fresh = fresh[:room]
        self._residency.insert(fresh, self._tier)
