"""Learning what a shared tier holds that other processes wrote, without ever waiting for it.

What this process wrote or saw is in the index. For the rest, a request's prefix chain is asked
for on I/O threads while the request waits; the answer enters the index, or is remembered as
absent for a while, so that another host's write is seen soon and nobody asks all the time.

Invariants: a block is asked for once at a time; a request waits at most its deadline; what is
known of a shared tier is bounded, and the least recently used of it is forgotten first.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from kvtier.blocks.key import BlockKey
from kvtier.cache.residency import Residency
from kvtier.index.local import HOLE, IDLE, NONE
from kvtier.tiers.base import Capabilities, Outcome
from kvtier.transfer.base import Completion, Direction, Transfer, Transfers

_SWEEP_AT: Final = 65_536
"""Absent blocks remembered before the expired ones are looked for."""


class TierDiscovery:
    """For one shared tier. One thread, never blocks."""

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
        """Key to the time at which it may be asked for again, soonest first."""
        self._asking: set[BlockKey] = set()
        self._is_stopped = False

    def knows(self, key: BlockKey, now_s: float) -> bool:
        """Whether the tier has been asked for `key` lately, or need not be."""
        return self._is_stopped or self._absent.get(key, now_s) > now_s

    def query(
        self, chain: Sequence[BlockKey], now_s: float, parent: BlockKey | None = None
    ) -> None:
        """Ask for a prefix chain, unless all of it is known; `parent` precedes its first block.

        The whole chain, because a tier may find a block only by those before it.
        """
        rows, held, bit = self._residency.index.rows, self._residency.index.held, self._bit
        if self._asking.intersection(chain) or all(
            self.knows(key, now_s) or ((row := rows.get(key)) is not None and held[row] & bit)
            for key in chain
        ):
            return
        parents = [parent, *chain[:-1]]
        transfer = Transfer(
            self._tier, Direction.FIND, [NONE] * len(chain), list(chain), parents=parents
        )
        if self._engine.submit(transfer):
            self._asking.update(chain)
        else:
            self._remember(chain, now_s)

    def complete(self, completion: Completion, now_s: float) -> None:
        """Take in an answer. What failed counts as absent, and is asked for again soon."""
        chain = completion.transfer.keys
        self._asking.difference_update(chain)
        if self._is_stopped:
            return
        outcomes: Sequence[Outcome | None] = completion.outcomes or [None] * len(chain)
        counters = self._residency.counters.tiers[self._tier]
        counters.fault_blocks += sum(outcome is Outcome.FAILED for outcome in outcomes)
        counters.corrupt_blocks += sum(outcome is Outcome.CORRUPT for outcome in outcomes)
        found = [outcome is Outcome.DONE for outcome in outcomes]
        absent = (key for key, is_held in zip(chain, found, strict=True) if not is_held)
        self._remember(absent, now_s)
        self._enter(completion.transfer, found)

    def stop(self) -> None:
        """What lies there must not be used any more by this process."""
        self._is_stopped = True
        self._absent.clear()

    def _remember(self, absent: Iterable[BlockKey], now_s: float) -> None:
        for key in absent:
            # Anew, so that the soonest stay in front.
            self._absent.pop(key, None)
            self._absent[key] = now_s + self._recheck_s
        if len(self._absent) > _SWEEP_AT:
            self._absent = {key: at_s for key, at_s in self._absent.items() if at_s > now_s}

    def _enter(self, answered: Transfer, found: Sequence[bool]) -> None:
        """Put what was found into the index, in prefix order."""
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
