"""An admission policy that admits a block when it is offered for the second time.

Most blocks are offered once and never requested again. On flash each of them would cost write
cycles, and a scan of such blocks would evict those that are requested again.

The policy records offers as fingerprints in two generations. New offers go to the younger one.
When it is full, it becomes the older generation, and the previous older one is removed. An offer
is therefore remembered for at least `remembered_blocks / 2` and at most `remembered_blocks`
further first offers.

Cost: O(1); about 100 bytes per remembered block. If two blocks share a 64-bit fingerprint, the
second is admitted one offer too early, which does no harm.
"""

import xxhash

from kvtier.admission.base import AdmissionDecision
from kvtier.blocks.key import BlockKey


class SecondTouch:
    """An `AdmissionPolicy` that remembers up to `remembered_blocks` offers.

    Raises ValueError if `remembered_blocks` is below 2.
    """

    __slots__ = ("_generation_blocks", "_older", "_younger")

    def __init__(self, *, remembered_blocks: int = 262_144) -> None:
        if remembered_blocks < 2:
            raise ValueError(f"remembered_blocks is {remembered_blocks}; it must be at least 2")
        self._generation_blocks = remembered_blocks // 2
        self._younger: set[int] = set()
        self._older: set[int] = set()

    def decide(self, key: BlockKey) -> AdmissionDecision:
        """Return ADMIT if an earlier offer of the block is remembered.

        Admitting a block removes its record: after an eviction it needs two offers again.
        """
        offer = xxhash.xxh3_64_intdigest(key)
        if offer in self._younger:
            self._younger.discard(offer)
            return AdmissionDecision.ADMIT
        if offer in self._older:
            self._older.discard(offer)
            return AdmissionDecision.ADMIT
        if len(self._younger) >= self._generation_blocks:
            self._older = self._younger
            self._younger = set()
        self._younger.add(offer)
        return AdmissionDecision.REJECT


PLUGIN = SecondTouch
