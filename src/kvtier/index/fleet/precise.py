"""The precise index: what replicas hold according to their KV events, applied as they come.

Shared storage is one pool for all replicas of a model that use it: what one replica wrote there,
every other can load. A block leaves the pool when an event says that it is gone, for example one
of the evictor.

Invariants: a prefix that is reported as held is held whole, even while engines remove blocks before
their children; the memory for a replica is bounded by `blocks_max`, whatever it sends.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from kvtier.clock import Clock, MonotonicClock
from kvtier.index.fleet.base import IndexSource, Match
from kvtier.index.fleet.events import BlocksRemoved, BlocksStored, DeviceCleared, KVEvent
from kvtier.index.fleet.expected import TTL_S
from kvtier.index.fleet.holdings import Holdings
from kvtier.index.fleet.prompt import Hasher, Prompt, Unit, process_hasher
from kvtier.index.fleet.reporting import (
    ReplicaGroup,
    ReplicaGroups,
    ReportingReplica,
    remove_blocks,
)
from kvtier.index.fleet.table import LEVELS, Caps, PrefixEnds, merged

BLOCKS_MAX: Final = 1 << 20
"""Blocks known of one replica, at most: 250 MiB. Blocks beyond are counted and ignored."""

_HOLES_FEW: Final = 64
"""If a replica has more holes, the prefix is walked instead of looking at each hole."""


class PreciseIndex:
    """A FleetIndex that follows events: `add` a replica, then `apply` its events."""

    source: Final = IndexSource.PRECISE

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        hasher: Hasher | None = None,
        blocks_max: int = BLOCKS_MAX,
        ttl_s: float = TTL_S,
    ) -> None:
        """Create an index. `ttl_s`: how long a routed prompt counts without being announced."""
        self._clock = MonotonicClock() if clock is None else clock
        hasher = process_hasher() if hasher is None else hasher
        self._groups = ReplicaGroups(hasher, blocks_max, ttl_s)
        self._replicas: dict[str, ReportingReplica] = {}

    # -- reading ---------------------------------------------------------------------------

    def match(self, prompt: Prompt, replicas: Sequence[str]) -> list[Match]:
        """Return one Match per replica, in the same order.

        A hole costs 0.2 us; a replica with many holes costs 0.7 ms.
        """
        nothing = Match({}, prompt.tokens)
        if prompt.unit is not Unit.TOKEN:
            return [nothing] * len(replicas)
        known = list(map(self._replicas.get, replicas))
        groups = {one.group for one in known if one is not None and one.group is not None}
        parts = [self._match(group, prompt, known) for group in groups]
        if not parts:
            return [nothing] * len(replicas)
        return parts[0] if len(parts) == 1 else merged(parts)

    def _match(
        self, group: ReplicaGroup, prompt: Prompt, replicas: Sequence[ReportingReplica | None]
    ) -> list[Match]:
        """Return one Match per replica; replicas of other groups hold nothing."""
        group.expected.expire(self._clock.now_s())
        members = [one.held if one is not None and one.group is group else None for one in replicas]
        block_tokens = group.table.block_tokens
        ends, caps = _ends(group, members, prompt.chain(block_tokens))
        slots = [None if held is None else held.slot for held in members]
        return ends.matches(slots, self._groups.levels, block_tokens, prompt.tokens, caps)

    def is_whole(self, replica: str) -> bool:
        """Return True if the replica has reported all it holds, since its start or a reset."""
        known = self._replicas.get(replica)
        return known is not None and known.is_whole

    def held_blocks(self, replica: str) -> int:
        """Return the number of blocks known of a replica."""
        known = self._replicas.get(replica)
        return 0 if known is None or known.held is None else len(known.held)

    @property
    def ignored_blocks(self) -> Counter[str]:
        """Blocks of events that changed nothing, by reason."""
        return self._groups.ignored_blocks

    @property
    def refused_blocks(self) -> int:
        """Blocks for which their replica had no room left, or that were reported twice."""
        held = [one.held for one in self._replicas.values() if one.held is not None]
        return sum(one.refused_blocks for one in (*held, *self._groups.pools))

    # -- learning --------------------------------------------------------------------------

    def add(self, replica: str, model: str) -> None:
        """Add a replica that serves `model`, as prompts name it. Another model resets it."""
        known = self._replicas.get(replica)
        if known is None or known.model != model:
            self.remove(replica)
            self._replicas[replica] = ReportingReplica(model, self._groups)

    def apply(self, replica: str, events: Iterable[KVEvent]) -> None:
        """Apply a replica's events, in order. Takes 5 us per new block.

        Events of a replica that was not added are counted and ignored.
        """
        known = self._replicas.get(replica)
        for event in events:
            if known is None:
                self.ignored_blocks["stranger"] += 1
            elif isinstance(event, BlocksStored):
                known.store(event)
            elif isinstance(event, BlocksRemoved):
                known.remove(event)
            elif isinstance(event, DeviceCleared):
                known.clear_device()
        self._groups.sweep()

    def apply_shared(self, model: str, events: Iterable[KVEvent]) -> None:
        """Apply events of an evictor, which is not a replica: blocks that left shared storage."""
        for event in events:
            level = None
            if isinstance(event, BlocksRemoved):
                level = self._groups.levels.use(event.tier)
            if level is None or not isinstance(event, BlocksRemoved):
                self.ignored_blocks["stranger"] += 1
                continue
            for group in self._groups.of_model(model):
                remove_blocks(group.pool, event.names, level)

    def routed(self, prompt: Prompt, replica: str) -> None:
        """Expect the prompt's blocks for `ttl_s`, unless the replica has reported nothing yet."""
        known = self._replicas.get(replica)
        if known is None or known.held is None or known.group is None:
            return
        if prompt.unit is Unit.TOKEN:
            chain = prompt.chain(known.group.table.block_tokens)
            known.group.expected.add(known.held.slot, chain, self._clock.now_s())

    def resize(self, replica: str, tier: str, capacity_tokens: int) -> None:
        """Ignore the capacity: the events say what is held."""

    def begin(self, replica: str) -> None:
        """Note that the events from now on cover everything that the replica holds."""
        known = self._replicas.get(replica)
        if known is not None:
            known.begin()

    def reset(self, replica: str) -> None:
        """Remove the blocks of a replica that lost its caches, or some of its events."""
        known = self._replicas.get(replica)
        if known is not None:
            known.reset()

    def remove(self, replica: str) -> None:
        """Remove a replica. Blocks that it wrote to shared storage stay. Idempotent."""
        self.reset(replica)
        self._replicas.pop(replica, None)


def _ends(
    group: ReplicaGroup, members: Sequence[Holdings | None], chain: list[int]
) -> tuple[PrefixEnds, Caps]:
    """Return how far each slot and bit reaches, and where holes end it earlier."""
    table, pool = group.table, group.pool
    broken = [held for held in members if held is not None and (held.holes or pool.holes)]
    if any(len(held.holes) > _HOLES_FEW for held in (pool, *broken)):
        return table.ends(chain, walked=True), {}
    caps: dict[int, dict[int, int]] = {}
    for held in broken:
        for source in (held, pool):
            for before, hashed in source.gaps(chain):
                byte = table.byte(hashed, held.slot)
                mine = caps.setdefault(held.slot, {})
                for level in range(LEVELS + 1):  # Expected blocks can have holes as well.
                    if not byte >> level & 1:
                        mine[level] = min(mine.get(level, before), before)
    return table.ends(chain), caps
