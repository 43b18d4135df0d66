"""What replicas hold, by estimate: an LRU of each replica and tier over what was routed there.

For replicas that announce nothing. Tiers below the device are written through, so each tier is
an LRU of its own over the same requests, and what falls out of the device's is still in RAM's,
which is bigger. Sizes are kept in tokens and turned into blocks of the replica's own block size
in one place, here: never is one unit taken for the other.

Invariant: see `recency`: no tier holds more than its capacity, nor a block without its prefix.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

from kvtier.index.fleet.answers import answers, merged
from kvtier.index.fleet.base import DEVICE, Match, Source
from kvtier.index.fleet.levels import Levels
from kvtier.index.fleet.prompt import Prompt
from kvtier.index.fleet.recency import Recency
from kvtier.index.fleet.table import BlockTable

DEVICE_TOKENS: Final = 500_000
"""Of a device whose capacity nobody has told."""
BLOCK_TOKENS: Final = 16
"""Of a replica whose block size nobody has told."""
COMPARED_TOKENS: Final = 64
"""The least that an estimate compares at a time: what is lost at the end of a prefix is computed in
milliseconds, and blocks of 16 cost four times as much to remember."""
BLOCKS_MAX: Final = 1 << 20
"""Of a replica's tier: 160 MiB, whatever it says that it holds. The oldest beyond are forgotten."""


class _Size(NamedTuple):
    """Replicas whose blocks have one size."""

    table: BlockTable
    slots: dict[str, int]
    """By replica."""


class EstimatedIndex:
    """Meets FleetIndex. `capacities` in tokens hold for every replica until it says otherwise."""

    source: Final = Source.ESTIMATED

    def __init__(
        self,
        capacities: Mapping[str, int] | None = None,
        *,
        block_tokens: int = BLOCK_TOKENS,
        follows: Collection[str] | None = None,
    ) -> None:
        """`follows`: tiers that `resize` may size or add; None: every one, empty: none."""
        self._capacities = {DEVICE: DEVICE_TOKENS} if capacities is None else dict(capacities)
        self._block_tokens = block_tokens
        self._follows = None if follows is None else frozenset(follows)
        self._levels = Levels()
        self._sizes: dict[int, _Size] = {}
        """By tokens of a block."""
        self._replicas: dict[str, Recency] = {}
        self._told: dict[str, dict[str, int]] = {}
        for tier in self._capacities:
            self._levels.use(tier)

    def match(self, prompt: Prompt, replicas: Sequence[str]) -> list[Match]:
        """See FleetIndex."""
        placed = [(size, list(map(size.slots.get, replicas))) for size in self._sizes.values()]
        parts = [
            self._match(size.table, prompt, slots)
            for size, slots in placed
            if any(slot is not None for slot in slots)
        ]
        if not parts:
            return [Match({}, prompt.tokens)] * len(replicas)
        return parts[0] if len(parts) == 1 else merged(parts)

    def _match(self, table: BlockTable, prompt: Prompt, slots: Sequence[int | None]) -> list[Match]:
        """One answer a slot; None, whose blocks are of another size, holds nothing."""
        ends = table.ends(prompt.chain(table.block_tokens))
        return answers(ends, slots, self._levels, table.block_tokens, prompt.tokens)

    def routed(self, prompt: Prompt, replica: str) -> None:
        """See FleetIndex. About a microsecond a block that is new, half of it otherwise."""
        recency = self._replicas.get(replica)
        if recency is None:
            recency = self._add(replica, self._block_tokens)
        for size in self._sizes.values():
            size.table.sweep()
        recency.touch(prompt.chain(recency.table.block_tokens))

    def resize(self, replica: str, tier: str, capacity_tokens: int) -> None:
        """See FleetIndex. A capacity that is not positive is not known, and changes nothing."""
        if capacity_tokens <= 0 or (self._follows is not None and tier not in self._follows):
            return
        level = self._levels.use(tier)
        if level is None:
            return
        told = self._told.setdefault(replica, {})
        if told.get(tier) == capacity_tokens:
            return
        told[tier] = capacity_tokens
        recency = self._replicas.get(replica)
        if recency is not None:
            recency.resize(level, _blocks(capacity_tokens, recency.table.block_tokens))

    def set_block_tokens(self, replica: str, block_tokens: int) -> None:
        """The replica's KV blocks have this size. One that had another is forgotten."""
        if block_tokens <= 0:
            return
        known = self._replicas.get(replica)
        if known is not None and known.table.block_tokens == block_tokens:
            return
        self._forget(replica)
        self._add(replica, block_tokens)

    def remove(self, replica: str) -> None:
        """See FleetIndex."""
        self._told.pop(replica, None)
        self._forget(replica)

    def held_blocks(self, replica: str) -> int:
        """Blocks that a replica is believed to hold in any tier."""
        recency = self._replicas.get(replica)
        return 0 if recency is None else len(recency)

    def _add(self, replica: str, block_tokens: int) -> Recency:
        # Block sizes that were told once, and by nobody any more, go.
        self._sizes = {
            tokens: size
            for tokens, size in self._sizes.items()
            if size.slots or tokens == block_tokens
        }
        size = self._sizes.get(block_tokens)
        if size is None:
            size = self._sizes[block_tokens] = _Size(BlockTable(block_tokens), {})
        recency = self._replicas[replica] = Recency(size.table)
        size.slots[replica] = recency.slot
        for tier, tokens in {**self._capacities, **self._told.get(replica, {})}.items():
            level = self._levels.use(tier)
            if level is not None:
                recency.resize(level, _blocks(tokens, block_tokens))
        return recency

    def _forget(self, replica: str) -> None:
        recency = self._replicas.pop(replica, None)
        if recency is None:
            return
        del self._sizes[recency.table.block_tokens].slots[replica]
        recency.release()


def compared(block_tokens: int) -> int:
    """The size of an estimate's blocks for an engine's: a multiple, COMPARED_TOKENS at least."""
    return block_tokens * -(-COMPARED_TOKENS // block_tokens) if block_tokens > 0 else 0


def _blocks(capacity_tokens: int, block_tokens: int) -> int:
    """Whole blocks; one at least, as a tier that exists is never sized away."""
    return min(BLOCKS_MAX, max(1, capacity_tokens // block_tokens))
