"""What was routed to a replica a moment ago and has not been announced by it yet.

Without it, the second of two requests with one prefix that arrive together would be sent
elsewhere. Requests expire in the order in which they came; a block that a later request touched
as well stays until that one expires.

Invariant: of each slot, the bits of what is expected are whole prefixes.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from kvtier.index.fleet.levels import ROUTED
from kvtier.index.fleet.table import BlockTable

TTL_S: Final = 2.0
"""Long enough to reach an engine's next steps, short where a request never arrived."""


class _Request(NamedTuple):
    expires_s: float
    number: int
    slot: int
    chain: Sequence[int]


class Expected:
    """Of the replicas of one table. One thread."""

    def __init__(self, table: BlockTable, ttl_s: float = TTL_S) -> None:
        self._table = table
        self._ttl_s = ttl_s
        self._requests: deque[_Request] = deque()
        self._touched: dict[int, dict[int, int]] = {}
        """By slot and block: the last request that touched it."""
        self._number = 0

    def add(self, slot: int, chain: Sequence[int], now_s: float) -> None:
        """A tenth of a microsecond a block."""
        self.expire(now_s)
        self._number += 1
        self._requests.append(_Request(now_s + self._ttl_s, self._number, slot, chain))
        self._touched.setdefault(slot, {}).update(dict.fromkeys(chain, self._number))
        self._table.paint(chain, slot, ROUTED, ROUTED)

    def expire(self, now_s: float) -> None:
        """Forget what has had its time. Nothing to do: 0.1 us."""
        while self._requests and self._requests[0].expires_s <= now_s:
            request = self._requests.popleft()
            touched = self._touched.get(request.slot, {})
            over = [block for block in request.chain if touched.get(block) == request.number]
            for block in over:
                del touched[block]
            self._table.paint(over, request.slot, 0, ROUTED)

    def forget(self, slot: int) -> None:
        """The slot is about to be released."""
        self._table.paint(list(self._touched.pop(slot, ())), slot, 0, ROUTED)
