"""Blocks that were routed to a replica a moment ago and that it has not announced yet.

Without them, the second of two requests with the same prefix that arrive together would be sent
elsewhere, because a request may wait in the engine's queue for long before its blocks are
announced. Requests expire in the order in which they came; a block that a later request touched
as well stays until that one expires. A block that the replica announces as removed from its
device is not expected any more.

Invariant: as long as a replica removes the ends of prefixes first, the bits of its expected
blocks form whole prefixes.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from kvtier.index.fleet.table import ROUTED, BlockTable

TTL_S: Final = 30.0
"""Long enough for an engine's queue, and short enough if a request never arrived."""
BLOCKS_MAX: Final = 1 << 19
"""Blocks of all requests together, 100 bytes each; beyond it the oldest requests expire."""


class _Request(NamedTuple):
    expires_s: float
    number: int
    slot: int
    chain: Sequence[int]


class ExpectedBlocks:
    """The expected blocks of the replicas of one table. Not thread-safe."""

    def __init__(
        self, table: BlockTable, ttl_s: float = TTL_S, blocks_max: int = BLOCKS_MAX
    ) -> None:
        self._table = table
        self._ttl_s = ttl_s
        self._blocks_max = blocks_max
        self._blocks = 0
        self._requests: deque[_Request] = deque()
        self._touched: dict[int, dict[int, int]] = {}
        """By slot and block: the number of the last request that touched the block."""
        self._number = 0

    def add(self, slot: int, chain: Sequence[int], now_s: float) -> None:
        """Expect the blocks of a request. Takes 0.1 us per block."""
        self.expire(now_s)
        self._number += 1
        self._requests.append(_Request(now_s + self._ttl_s, self._number, slot, chain))
        self._blocks += len(chain)
        while self._blocks > self._blocks_max and len(self._requests) > 1:
            self._expire_oldest()
        self._touched.setdefault(slot, {}).update(dict.fromkeys(chain, self._number))
        self._table.set_bits(chain, slot, ROUTED, ROUTED)

    def expire(self, now_s: float) -> None:
        """Remove requests whose time is over. Takes 0.1 us if there are none."""
        while self._requests and self._requests[0].expires_s <= now_s:
            self._expire_oldest()

    def remove(self, slot: int, blocks: Iterable[int]) -> None:
        """Remove blocks that the replica had and has removed."""
        touched = self._touched.get(slot)
        if not touched:
            return
        over = [block for block in blocks if touched.pop(block, None) is not None]
        if over:
            self._table.set_bits(over, slot, 0, ROUTED)

    def remove_slot(self, slot: int) -> None:
        """Remove all blocks of a slot."""
        self._table.set_bits(list(self._touched.pop(slot, ())), slot, 0, ROUTED)

    def _expire_oldest(self) -> None:
        request = self._requests.popleft()
        self._blocks -= len(request.chain)
        touched = self._touched.get(request.slot, {})
        over = [block for block in request.chain if touched.get(block) == request.number]
        for block in over:
            del touched[block]
        self._table.set_bits(over, request.slot, 0, ROUTED)
