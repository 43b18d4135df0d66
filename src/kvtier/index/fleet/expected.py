"""What was routed to a replica a moment ago and has not been announced by it yet.

Without it, the second of two requests with one prefix that arrive together would be sent
elsewhere: a request may stand in the engine's queue for long before its blocks are announced.
Requests expire in the order in which they came; a block that a later request touched as well
stays until that one expires. What the replica says has left its device is not expected any more,
so that what came and went in the meantime does not count for the rest of its time.

Invariant: as long as a replica lets go of the ends of prefixes first, the bits of what is
expected of it are whole prefixes.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from kvtier.index.fleet.levels import ROUTED
from kvtier.index.fleet.table import BlockTable

TTL_S: Final = 30.0
"""Long enough for an engine's queue, short where a request never arrived."""
BLOCKS_MAX: Final = 1 << 19
"""Of all requests together, 100 bytes each; beyond it the oldest have had their time."""


class _Request(NamedTuple):
    expires_s: float
    number: int
    slot: int
    chain: Sequence[int]


class Expected:
    """Of the replicas of one table. One thread."""

    def __init__(
        self, table: BlockTable, ttl_s: float = TTL_S, blocks_max: int = BLOCKS_MAX
    ) -> None:
        self._table = table
        self._ttl_s = ttl_s
        self._blocks_max = blocks_max
        self._blocks = 0
        self._requests: deque[_Request] = deque()
        self._touched: dict[int, dict[int, int]] = {}
        """By slot and block: the last request that touched it."""
        self._number = 0

    def add(self, slot: int, chain: Sequence[int], now_s: float) -> None:
        """A tenth of a microsecond a block."""
        self.expire(now_s)
        self._number += 1
        self._requests.append(_Request(now_s + self._ttl_s, self._number, slot, chain))
        self._blocks += len(chain)
        while self._blocks > self._blocks_max and len(self._requests) > 1:
            self._end_oldest()
        self._touched.setdefault(slot, {}).update(dict.fromkeys(chain, self._number))
        self._table.paint(chain, slot, ROUTED, ROUTED)

    def expire(self, now_s: float) -> None:
        """Forget what has had its time. Nothing to do: 0.1 us."""
        while self._requests and self._requests[0].expires_s <= now_s:
            self._end_oldest()

    def withdraw(self, slot: int, blocks: Iterable[int]) -> None:
        """The replica had them, and has let them go."""
        touched = self._touched.get(slot)
        if not touched:
            return
        over = [block for block in blocks if touched.pop(block, None) is not None]
        if over:
            self._table.paint(over, slot, 0, ROUTED)

    def forget(self, slot: int) -> None:
        """The slot is about to be released."""
        self._table.paint(list(self._touched.pop(slot, ())), slot, 0, ROUTED)

    def _end_oldest(self) -> None:
        request = self._requests.popleft()
        self._blocks -= len(request.chain)
        touched = self._touched.get(request.slot, {})
        over = [block for block in request.chain if touched.get(block) == request.number]
        for block in over:
            del touched[block]
        self._table.paint(over, request.slot, 0, ROUTED)
