"""Admit a block at its second offer: most blocks are offered once and never asked for again.

Why it is here: on flash each admitted block spends write cycles, and a scan of blocks without
return would push out those that do return.
Memory of offers: two generations of fingerprints. The younger takes new offers; when it is
full it becomes the older and the oldest half is forgotten. So an offer is remembered for at
least `remembered_blocks / 2` and at most `remembered_blocks` further first offers.
Costs: O(1); some 100 bytes a remembered block, at most `remembered_blocks` of them.
Two blocks with one 64-bit fingerprint would admit the later one early: harmless.
"""

import xxhash

from kvtier.admission.base import AdmissionDecision
from kvtier.blocks.key import BlockKey


class SecondTouch:
    """An `AdmissionPolicy`. Raises ValueError if `remembered_blocks` is below 2."""

    __slots__ = ("_generation_blocks", "_older", "_younger")

    def __init__(self, *, remembered_blocks: int = 262_144) -> None:
        if remembered_blocks < 2:
            raise ValueError(f"remembered_blocks is {remembered_blocks}; it needs 2 or more")
        self._generation_blocks = remembered_blocks // 2
        self._younger: set[int] = set()
        self._older: set[int] = set()

    def decide(self, key: BlockKey) -> AdmissionDecision:
        """ADMIT if the block was offered before and the offer is not yet forgotten.

        An admitted block is forgotten: once it has left the tier it must prove itself again.
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
