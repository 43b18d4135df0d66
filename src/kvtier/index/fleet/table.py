"""Who holds which block: one mask a block over all replicas and tiers, and prefixes by bisection.

A mask is a Python int with a byte a replica (`levels`). Equal masks are one object. Along the
chain of a prompt a mask can only lose bits as long as each replica holds whole prefixes, so one
descent finds for all replicas and tiers at once where each of them ends: it splits an interval
only where the masks of its ends differ.

Slot 0 is the *pool*: storage that many replicas read. What it holds counts for all its members.

Invariants: no mask of 0 is kept; the bits of a slot that was released are never seen again, also
while they are still being cleared. One thread.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, groupby, islice, repeat
from operator import and_
from typing import Final

from kvtier.index.fleet.ends import Ends
from kvtier.index.fleet.levels import HELD

POOL: Final = 0
"""The slot of shared storage."""
SWEPT_AT_ONCE: Final = 2048
"""Blocks of released slots that one call clears: under a millisecond."""

_BYTE: Final = 8
_INTERNED_MAX: Final = 65_536


class BlockTable:
    """Blocks of one size. 75 bytes a block, whoever holds it."""

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self._masks: dict[int, int] = {}
        self._interned: dict[int, int] = {}
        self._slots = 1
        self._free: list[int] = []
        self._live = HELD
        self._members = 0
        self._released: deque[tuple[int, Iterator[int]]] = deque()

    def __len__(self) -> int:
        """Blocks that somebody holds."""
        return len(self._masks)

    # -- slots -----------------------------------------------------------------------------

    def take_slot(self) -> int:
        """A byte for a replica that is new."""
        self.sweep()
        if self._free:
            slot = self._free.pop()
        else:
            slot = self._slots
            self._slots += 1
        self._live |= 0xFF << slot * _BYTE
        return slot

    def join_pool(self, slot: int) -> None:
        """What the pool holds counts for this replica as well. Idempotent."""
        self._members |= 1 << slot * _BYTE

    def is_member(self, slot: int) -> bool:
        """Whether what the pool holds counts for it."""
        return bool(self._members >> slot * _BYTE & 1)

    def release_slot(self, slot: int, hashes: Iterable[int]) -> None:
        """Forget a slot; `hashes` are all that it may hold and do not change any more.

        It counts no more at once; its bits are cleared in pieces, some with each later call.
        """
        self._live &= ~(0xFF << slot * _BYTE)
        self._members &= ~(1 << slot * _BYTE)
        self._released.append((slot, iter(hashes)))
        self.sweep()

    def sweep(self) -> None:
        """Clear a piece of what was released. Under a millisecond."""
        if not self._released:
            return
        slot, rest = self._released[0]
        piece = list(islice(rest, SWEPT_AT_ONCE))
        self.paint(piece, slot, 0, 0xFF)
        if len(piece) < SWEPT_AT_ONCE:
            self._released.popleft()
            self._free.append(slot)

    # -- blocks ----------------------------------------------------------------------------

    def byte(self, hashed: int, slot: int) -> int:
        """What a slot holds of a block, the pool's share included if it is a member."""
        mask = self._pooled(self._masks.get(hashed, 0))
        return (mask >> slot * _BYTE) & 0xFF

    def own_byte(self, hashed: int, slot: int) -> int:
        """What a slot itself holds of a block."""
        return (self._masks.get(hashed, 0) >> slot * _BYTE) & 0xFF

    def set_held(self, hashed: int, slot: int, held: int) -> None:
        """Write the levels of one block, cumulative; the rest of the byte stays."""
        shift = slot * _BYTE
        masks = self._masks
        new = masks.get(hashed, 0) & ~(HELD << shift) | held << shift
        if new:
            masks[hashed] = self._intern(new)
        else:
            masks.pop(hashed, None)

    def paint(self, hashes: Sequence[int], slot: int, bits: int, among: int = HELD) -> None:
        """Write `bits` where the byte has `among`, in many blocks. 30 ns each in long runs."""
        masks = self._masks
        shift = slot * _BYTE
        clear, bits = ~(among << shift), bits << shift
        old = list(map(masks.get, hashes, repeat(0)))
        new = {mask: self._intern(mask & clear | bits) for mask in set(old)}
        if len(new) == 1 and 0 not in new.values():
            masks.update(dict.fromkeys(hashes, next(iter(new.values()))))
            return
        masks.update(zip(hashes, map(new.__getitem__, old), strict=True))
        if 0 in new.values():
            for hashed in hashes:
                if masks.get(hashed, 1) == 0:
                    del masks[hashed]

    # -- prefixes --------------------------------------------------------------------------

    def ends(self, chain: Sequence[int], *, walked: bool = False) -> Ends:
        """How far each slot and bit reaches. `walked`: not by bisection.

        Right for every slot that holds whole prefixes. Where a replica holds a block without
        the one before, it may tell too much of that replica, and never too little: the first
        gap of the prefix is at or before the end found. Walking costs 0.1 us a block and is
        right always.
        """
        lengths, masks = (self._walked if walked else self._bisected)(chain) if chain else ([], [])
        if self._members:
            masks = list(map(self._pooled, masks))
        return Ends(lengths, list(accumulate(masks, and_, initial=self._live))[1:], self._slots)

    def _bisected(self, chain: Sequence[int]) -> tuple[list[int], list[int]]:
        """Runs of equal masks: where each ends, and its mask. 0.1 us a look."""
        get = self._seen if self._released else self._masks.get
        mask, low, high, beyond = get(chain[0], 0), 0, len(chain), 0
        lengths: list[int] = []
        masks: list[int] = []
        later: list[tuple[int, int]] = []
        while mask:
            while high - low > 1:
                middle = (low + high) >> 1
                found = get(chain[middle], 0)
                # Equal masks are one object; where they are not, there is a run more.
                if found is mask:
                    low = middle
                elif found is beyond:
                    high = middle
                else:
                    later.append((high, beyond))
                    high, beyond = middle, found
            lengths.append(high)
            masks.append(mask)
            if not later:
                break
            mask, low = beyond, high
            high, beyond = later.pop()
        return lengths, masks

    def _walked(self, chain: Sequence[int]) -> tuple[list[int], list[int]]:
        """The same, looking at every block."""
        lengths: list[int] = []
        masks: list[int] = []
        for mask, run in groupby(map(self._masks.get, chain, repeat(0))):
            lengths.append(sum(1 for _ in run) + (lengths[-1] if lengths else 0))
            masks.append(mask)
        return lengths, masks

    def _seen(self, hashed: int, missing: int) -> int:
        """Without what is still being cleared, which comes and goes along a chain."""
        return self._intern(self._masks.get(hashed, missing) & self._live)

    def _pooled(self, mask: int) -> int:
        if self._members and mask & HELD:
            return mask | (mask & HELD) * self._members
        return mask

    def _intern(self, mask: int) -> int:
        if len(self._interned) > _INTERNED_MAX:
            self._interned.clear()
        return self._interned.setdefault(mask, mask)
