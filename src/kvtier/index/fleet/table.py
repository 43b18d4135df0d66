"""The block table: which replicas hold which block in which tier, and prefixes by bisection.

Each block has a mask, a Python int with one byte for each replica. The byte has one bit for each
tier, called its *level*, from the fastest to the slowest. Stored bytes are *cumulative*: the bit of
a level is set if that level or a faster one has the block, so that "held in RAM or faster" is one
bit, and the prefix that it forms can be bisected. The last bit stands for blocks that were routed
to the replica a moment ago and are not announced yet.

Equal masks are one object. Along the chain of a prompt, a mask can only lose bits as long as each
replica holds whole prefixes. So one descent finds the ends of all replicas and tiers at once: it
splits an interval only if the masks at its ends differ.

Slot 0 is the *pool*: storage that many replicas read. Its blocks count for all its members.

Invariants: a name keeps its level as long as the index lives, and there are never more than LEVELS;
no mask of 0 is kept; the bits of a released slot are never seen again, even while they are still
being cleared.
"""

import functools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, groupby, islice, repeat
from operator import and_
from typing import Final

from kvtier.index.fleet.base import DEVICE, Match

LEVELS: Final = 7
ABSENT: Final = LEVELS
"""The level of a block that no tier holds: beyond the slowest."""
ROUTED: Final = 1 << LEVELS
"""The bit of a block that was routed to the replica and is expected there."""
HELD: Final = ROUTED - 1
"""The bits of all levels."""
KNOWN: Final = (DEVICE, "ram", "disk", "shared", "objectstore")
"""The tiers of this project's settings. Two more may come from elsewhere; they rank last."""

CUMULATIVE: Final = tuple(
    (HELD & ~((raw & -raw) - 1)) if raw & HELD else 0 for raw in range(ROUTED)
)
"""By the set of levels that have a block: the set of these and all slower levels."""
LOWEST: Final = tuple(((raw & -raw).bit_length() - 1) if raw else ABSENT for raw in range(ROUTED))
"""By the set of levels that have a block: the fastest of them."""

POOL: Final = 0
"""The slot of shared storage."""
SWEPT_AT_ONCE: Final = 2048
"""Blocks of released slots that one call clears, in less than a millisecond."""

_BYTE: Final = 8
_INTERNED_MAX: Final = 65_536
_BYTES = bytes(range(256))

Caps = Mapping[int, Mapping[int, int]]
"""By slot and level (LEVELS for expected blocks): the blocks before the first missing one."""
_NO_CAPS: Final[Caps] = {}


class Levels:
    """The levels of tier names, and which of them occur."""

    def __init__(self) -> None:
        self._names = list(KNOWN)
        self._used: tuple[int, ...] = (0,)

    @property
    def used(self) -> tuple[int, ...]:
        """The levels that occur, the fastest first; the device's always does."""
        return self._used

    def name(self, level: int) -> str:
        """Return the tier's name of a level in `used`."""
        return self._names[level]

    def use(self, name: str) -> int | None:
        """Return the level of a tier and mark it as used; return None if no level is left."""
        if name not in self._names:
            if len(self._names) == LEVELS:
                return None
            self._names.append(name)
        level = self._names.index(name)
        if level not in self._used:
            self._used = tuple(sorted((*self._used, level)))
        return level


class BlockTable:
    """The masks of blocks of one size. Takes 75 bytes per block in total. Not thread-safe."""

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
        """The number of blocks that any replica holds."""
        return len(self._masks)

    # -- slots -----------------------------------------------------------------------------

    def take_slot(self) -> int:
        """Take a slot, which is a byte of the masks, for a new replica."""
        self.sweep()
        if self._free:
            slot = self._free.pop()
        else:
            slot = self._slots
            self._slots += 1
        self._live |= 0xFF << slot * _BYTE
        return slot

    def join_pool(self, slot: int) -> None:
        """Let the blocks of the pool count for this slot as well. Idempotent."""
        self._members |= 1 << slot * _BYTE

    def is_member(self, slot: int) -> bool:
        """Return True if the blocks of the pool count for this slot."""
        return bool(self._members >> slot * _BYTE & 1)

    def release_slot(self, slot: int, hashes: Iterable[int]) -> None:
        """Release a slot; `hashes` are all blocks that it may hold and must not change any more.

        The slot stops counting at once. Its bits are cleared in pieces, some in each later call.
        """
        self._live &= ~(0xFF << slot * _BYTE)
        self._members &= ~(1 << slot * _BYTE)
        self._released.append((slot, iter(hashes)))
        self.sweep()

    def sweep(self) -> None:
        """Clear one piece of the released slots. Takes less than a millisecond."""
        if not self._released:
            return
        slot, rest = self._released[0]
        piece = list(islice(rest, SWEPT_AT_ONCE))
        self.set_bits(piece, slot, 0, 0xFF)
        if len(piece) < SWEPT_AT_ONCE:
            self._released.popleft()
            self._free.append(slot)

    # -- blocks ----------------------------------------------------------------------------

    def byte(self, hashed: int, slot: int) -> int:
        """Return the byte of a block and slot, including the pool's bits if it is a member."""
        mask = self._pooled(self._masks.get(hashed, 0))
        return (mask >> slot * _BYTE) & 0xFF

    def own_byte(self, hashed: int, slot: int) -> int:
        """Return the byte of a block and slot, without the pool's bits."""
        return (self._masks.get(hashed, 0) >> slot * _BYTE) & 0xFF

    def set_held(self, hashed: int, slot: int, held: int) -> None:
        """Set the cumulative levels of one block; the rest of the byte stays."""
        shift = slot * _BYTE
        masks = self._masks
        new = masks.get(hashed, 0) & ~(HELD << shift) | held << shift
        if new:
            masks[hashed] = self._intern(new)
        else:
            masks.pop(hashed, None)

    def set_bits(self, hashes: Sequence[int], slot: int, bits: int, among: int = HELD) -> None:
        """Set those bits of many blocks that are in `among` to `bits`. 30 ns each in long runs."""
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

    def ends(self, chain: Sequence[int], *, walked: bool = False) -> "PrefixEnds":
        """Return how far each slot and bit reaches, by bisection unless `walked`.

        The result is exact for every slot that holds whole prefixes. If a replica holds a block
        without the one before it, bisection may report too much for that replica but never too
        little: the first gap of the prefix is at or before the end found. Walking is always
        exact and takes 0.1 us per block.
        """
        lengths, masks = (self._walked if walked else self._bisected)(chain) if chain else ([], [])
        if self._members:
            masks = list(map(self._pooled, masks))
        masks = list(accumulate(masks, and_, initial=self._live))[1:]
        return PrefixEnds(lengths, masks, self._slots)

    def _bisected(self, chain: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return the end and the mask of each run of equal masks. Takes 0.1 us per probe."""
        get = self._seen if self._released else self._masks.get
        mask, low, high, beyond = get(chain[0], 0), 0, len(chain), 0
        lengths: list[int] = []
        masks: list[int] = []
        later: list[tuple[int, int]] = []
        while mask:
            while high - low > 1:
                middle = (low + high) >> 1
                found = get(chain[middle], 0)
                # Equal masks are one object. If two are not, this only costs one more run.
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
        """Return the same as `_bisected`, but look at every block."""
        lengths: list[int] = []
        masks: list[int] = []
        for mask, run in groupby(map(self._masks.get, chain, repeat(0))):
            lengths.append(sum(1 for _ in run) + (lengths[-1] if lengths else 0))
            masks.append(mask)
        return lengths, masks

    def _seen(self, hashed: int, missing: int) -> int:
        """Return a mask without the bits still being cleared, which are not monotonic."""
        return self._intern(self._masks.get(hashed, missing) & self._live)

    def _pooled(self, mask: int) -> int:
        if self._members and mask & HELD:
            return mask | (mask & HELD) * self._members
        return mask

    def _intern(self, mask: int) -> int:
        if len(self._interned) > _INTERNED_MAX:
            self._interned.clear()
        return self._interned.setdefault(mask, mask)


class PrefixEnds:
    """How far along one chain each replica and tier reaches.

    A descent found steps of ever fewer bits. Each slot has a *column* with one byte per step. A
    step has no bit that the step before lacks, so the number of steps that have a bit says where
    its prefix ends. Columns are plain bytes, because there are few steps and many questions, each
    of which costs less than one NumPy call.
    """

    __slots__ = ("_masks", "_width", "lengths")

    def __init__(self, lengths: Sequence[int], masks: Sequence[int], slots: int) -> None:
        """Take, by step, its length in ascending order and the bits that reach at least so far."""
        self.lengths = [0, *lengths]
        """In blocks, by the number of steps."""
        self._masks = b"".join([mask.to_bytes(slots, "little") for mask in masks])
        self._width = slots

    def columns(self, slots: Sequence[int | None]) -> list[bytes | None]:
        """Return the column of each slot; slots with equal columns reach equally far."""
        masks, width = self._masks, self._width
        return [None if slot is None else masks[slot::width] for slot in slots]

    def reach(self, slot: int, bits: int) -> int:
        """Return the leading blocks of the chain that have any of these bits."""
        column = self._masks[slot :: self._width]
        return self.lengths[len(column.translate(None, lacking(bits)))]

    def matches(
        self,
        slots: Sequence[int | None],
        levels: Levels,
        block_tokens: int,
        total_tokens: int,
        caps: Caps = _NO_CAPS,
    ) -> list[Match]:
        """Return one Match per slot, in the same order; None holds nothing.

        Each Match has all used levels, the fastest first. Takes 0.5 us for each slot that
        differs from all others, and 0.1 us otherwise.
        """
        # Blocks that were routed a moment ago count as on their way to the device.
        wanted = [(levels.name(level), lacking(1 << level | ROUTED)) for level in levels.used]
        lengths = [length * block_tokens for length in self.lengths]
        columns = self.columns(slots)
        known = dict.fromkeys(columns, Match({}, total_tokens))
        for column in known:
            if column is not None:
                tokens = {}
                for name, lack in wanted:
                    tokens[name] = lengths[len(column.translate(None, lack))]
                known[column] = Match(tokens, total_tokens)
        found = [known[column] for column in columns]
        for at, slot in enumerate(slots if caps else ()):
            if slot is not None and slot in caps:
                found[at] = self._capped(slot, levels, block_tokens, total_tokens, caps[slot])
        return found

    def _capped(
        self,
        slot: int,
        levels: Levels,
        block_tokens: int,
        total_tokens: int,
        caps: Mapping[int, int],
    ) -> Match:
        """Return the Match of a slot that lacks blocks within its prefixes."""
        routed = self.reach(slot, ROUTED)
        routed = min(routed, caps.get(LEVELS, routed))
        tokens = {}
        for level in levels.used:
            held = self.reach(slot, 1 << level)
            tokens[levels.name(level)] = (
                max(min(held, caps.get(level, held)), routed) * block_tokens
            )
        return Match(tokens, total_tokens)


@functools.cache
def lacking(bits: int) -> bytes:
    """Return all bytes that have none of the bits."""
    return bytes(byte for byte in _BYTES if not byte & bits)


def merged(parts: Sequence[Sequence[Match]]) -> list[Match]:
    """Merge answers about the same replicas, of which at most one part knows each replica."""
    return [
        max(answers, key=lambda match: len(match.tokens)) for answers in zip(*parts, strict=True)
    ]
