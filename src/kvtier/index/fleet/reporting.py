"""Replicas that report what they hold: their events become rows of their holdings or of the pool.

Blocks are hashed again from the tokens in the events, so that prompts can be compared with them;
the engine's own hashes serve only as names. One KV-cache group is indexed, that of full attention:
the windows and states of other groups are kept or evicted with it, and say less about a prefix.

Invariants: all rows of a group are of one block size; an event that cannot be used changes nothing
and is counted, by its blocks.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from kvtier.index.fleet.base import DEVICE
from kvtier.index.fleet.events import BlocksRemoved, BlocksStored
from kvtier.index.fleet.expected import ExpectedBlocks
from kvtier.index.fleet.holdings import ROOT, Holdings
from kvtier.index.fleet.prompt import NUMBERS_MAX, Hasher, Scope, hash_of
from kvtier.index.fleet.table import POOL, BlockTable, Levels

_PARTIAL: Final = ("sliding", "mamba", "chunked", "cross", "encoder", "linear")
"""Parts of the names of attention kinds that need only a part of the prefix, or none of it."""


_GROUPS_MAX: Final = 256
"""Models times block sizes. No real fleet has so many; a replica that invents more is refused."""


class ReplicaGroup:
    """The replicas of one model and one block size, and the storage that they share."""

    def __init__(self, model: str, block_tokens: int, blocks_max: int, ttl_s: float) -> None:
        self.model = model
        self.table = BlockTable(block_tokens)
        self.expected = ExpectedBlocks(self.table, ttl_s)
        self.pool = Holdings(self.table, POOL, blocks_max, is_counted=False)
        self.replicas = 0


class ReplicaGroups:
    """All groups of an index, created on demand, and what its replicas have in common."""

    def __init__(self, hasher: Hasher, blocks_max: int, ttl_s: float) -> None:
        self.hasher = hasher
        self.levels = Levels()
        self.ignored_blocks: Counter[str] = Counter()
        """Blocks of events that changed nothing, by reason."""
        self.blocks_max = blocks_max
        self._ttl_s = ttl_s
        self._groups: dict[tuple[str, int], ReplicaGroup] = {}

    def join(self, model: str, block_tokens: int) -> ReplicaGroup | None:
        """Add a replica to its group, created if it is new; return None if there are too many."""
        group = self._groups.get((model, block_tokens))
        if group is None:
            if len(self._groups) >= _GROUPS_MAX and not self._remove_unused():
                return None
            group = ReplicaGroup(model, block_tokens, self.blocks_max, self._ttl_s)
            self._groups[model, block_tokens] = group
        group.replicas += 1
        return group

    def _remove_unused(self) -> bool:
        """Remove the oldest group without replicas; return False if there is none."""
        for key, group in self._groups.items():
            if not group.replicas:
                del self._groups[key]
                return True
        return False

    def remove_member(self, group: ReplicaGroup) -> None:
        """Remove a replica from its group, and the group if it is then empty."""
        group.replicas -= 1
        if not group.replicas and not len(group.table):
            self._groups.pop((group.model, group.table.block_tokens), None)

    def sweep(self) -> None:
        """Clear more of the released slots, and remove groups without replicas and blocks."""
        for group in list(self._groups.values()):
            group.table.sweep()
            if not group.replicas and not len(group.table):
                del self._groups[group.model, group.table.block_tokens]

    def of_model(self, model: str) -> list[ReplicaGroup]:
        """Return the groups of a model, one for each block size."""
        return [group for group in self._groups.values() if group.model == model]

    @property
    def pools(self) -> list[Holdings]:
        """The pools of all models and block sizes."""
        return [group.pool for group in self._groups.values()]


class ReportingReplica:
    """A replica. It has `group` and `held` once it has reported the size of its blocks."""

    __slots__ = (
        "_groups",
        "_is_device_empty",
        "_is_kv_group_reported",
        "_kv_group",
        "group",
        "held",
        "is_whole",
        "model",
    )

    def __init__(self, model: str, groups: ReplicaGroups) -> None:
        self.model = model
        self._groups = groups
        self.group: ReplicaGroup | None = None
        self.held: Holdings | None = None
        self.is_whole = False
        """True if it has reported all that it holds: engines report a block once, when it comes."""
        self._kv_group: int | None = None
        """The KV-cache group that is indexed."""
        self._is_kv_group_reported = False
        """True if an event named that group's kind of attention; else it is a guess."""
        self._is_device_empty = False
        """True if no block came since the device was cleared; clearing visits every block."""

    def begin(self) -> None:
        """Note that the replica has reported, or will report, everything it holds."""
        self.is_whole = True

    def reset(self) -> None:
        """Remove all blocks of the replica; its next event starts from nothing."""
        self._leave_group()
        self._kv_group = None
        self._is_kv_group_reported = self.is_whole = False

    def _leave_group(self) -> None:
        if self.group is not None and self.held is not None:
            self.group.expected.remove_slot(self.held.slot)
            self.group.table.release_slot(self.held.slot, self.held.hashes())
            self._groups.remove_member(self.group)
        self.group = self.held = None

    def clear_device(self) -> None:
        """Remove all blocks from the replica's device.

        Slower tiers report block by block what leaves them, because an engine sends the same
        event whether it clears the device alone or all tiers.
        """
        level = self._groups.levels.use(DEVICE)
        if self.group is None or self.held is None or level is None:
            return
        if self.held.levels == 1 << level and not self.group.table.is_member(self.held.slot):
            # The replica holds nothing else. Releasing its slot clears the blocks in pieces.
            self._leave_group()
            self.is_whole = True
            return
        self.group.expected.remove_slot(self.held.slot)
        if not self._is_device_empty:
            self.held.reset(level)
        self._is_device_empty = True

    def store(self, event: BlocksStored) -> None:
        """Add blocks that entered a tier. Takes 5 us per new block."""
        reason = self._refusal(event)
        level = self._groups.levels.use(event.tier) if reason is None else None
        if reason is not None or level is None:
            self._groups.ignored_blocks[reason or "tier"] += len(event.names)
            return
        assert self.held is not None
        assert self.group is not None
        if event.tier == DEVICE:
            self._is_device_empty = False
        if not event.is_shared:
            self._hold(self.held, event, level)
            return
        self.group.table.join_pool(self.held.slot)
        for name in (event.parent, *event.names):
            if name is not None:
                _copy(self.held, self.group.pool, name)
        self._hold(self.group.pool, event, level)

    def remove(self, event: BlocksRemoved) -> None:
        """Remove blocks that left a tier. Takes 2 us per block."""
        level = self._groups.levels.use(event.tier)
        ignored = self._groups.ignored_blocks
        if level is None or self.held is None or self.group is None:
            ignored["unknown"] += len(event.names)
        elif event.group not in (None, self._kv_group):
            ignored["group"] += len(event.names)
        else:
            held = self.group.pool if event.is_shared else self.held
            if event.tier == DEVICE:
                self._remove_expected(self.group, self.held, event.names)
            ignored["unknown"] += remove_blocks(held, event.names, level)

    def _remove_expected(self, group: ReplicaGroup, held: Holdings, names: Sequence[int]) -> None:
        rows = (row for name in names if (row := held.row(name)) is not None)
        group.expected.remove(held.slot, (hash_of(held.state(row)) for row in rows))

    # -- checking events -------------------------------------------------------------------

    def _refusal(self, event: BlocksStored) -> str | None:
        """Return why the event cannot be used, or None if it can; then `held` is set."""
        if any(part in event.kind for part in _PARTIAL):
            return "group"
        size = event.block_tokens if event.token_ids else 0
        if event.token_ids and len(event.token_ids) != size * len(event.names):
            # Also groups that keep only some blocks, if the engine does not say so.
            return "malformed"
        if event.kind and not self._is_kv_group_reported:
            if self._kv_group not in (None, event.group):
                self.reset()
            self._kv_group, self._is_kv_group_reported = event.group, True
        elif self._kv_group is None and size:
            self._kv_group = event.group
        if event.group != self._kv_group:
            return "group" if self._kv_group is not None else "unknown"
        return None if self._adopt_size(size) else "block_size"

    def _adopt_size(self, block_tokens: int) -> bool:
        """Return True if blocks of this size (0: unknown) can be added. The largest size counts.

        An engine whose hashes are finer than its blocks reports the last part of a prompt as a
        block of its own, which may be all that it has reported so far.
        """
        if self.group is not None and block_tokens <= self.group.table.block_tokens:
            return block_tokens in (0, self.group.table.block_tokens)
        if not 0 < block_tokens <= NUMBERS_MAX:
            return False
        self._leave_group()
        self.group = self._groups.join(self.model, block_tokens)
        if self.group is None:
            return False
        table = self.group.table
        self.held = Holdings(table, table.take_slot(), self._groups.blocks_max)
        return True

    # -- rows ------------------------------------------------------------------------------

    def _hold(self, held: Holdings, event: BlocksStored, level: int) -> None:
        parent = ROOT if event.parent is None else held.row(event.parent)
        for at, name in enumerate(event.names):
            row = held.row(name)
            if row is None:
                row = self._add_row(held, event, at, parent)
            if row is not None:
                held.hold(row, level)
            parent = row

    def _add_row(
        self, held: Holdings, event: BlocksStored, at: int, parent: int | None
    ) -> int | None:
        """Add a row for block `at` of the event; count it and return None if that is impossible."""
        ignored = self._groups.ignored_blocks
        if not event.token_ids:
            ignored["unknown"] += 1
            return None
        if parent is None:
            ignored["orphan"] += 1
            return None
        size = event.block_tokens
        hasher = self._groups.hasher
        extras = _extras(event, at)
        if parent == ROOT:
            salt = next((extra for extra in extras if isinstance(extra, str)), "")
            extras = [extra for extra in extras if not isinstance(extra, str)]
            state, depth = hasher.seed(Scope(event.adapter or self.model, salt)), 0
        else:
            state, depth = held.state(parent), held.depth(parent)
        if (depth + 1) * size > NUMBERS_MAX:
            ignored["too_long"] += 1
            return None
        tokens = event.token_ids[at * size : (at + 1) * size]
        state = hasher.extend(state, depth * size, tokens)
        for extra in extras:
            state = (state + hasher.digest(msgspec.msgpack.encode(extra))) % (1 << 64)
        return held.add(event.names[at], state, depth + 1, parent)


def remove_blocks(held: Holdings, names: Sequence[int], level: int) -> int:
    """Remove blocks from a tier; return how many of them are unknown."""
    unknown = 0
    for name in names:
        row = held.row(name)
        if row is None:
            unknown += 1
        else:
            held.remove(row, level)
    return unknown


def _extras(event: BlocksStored, at: int) -> list[Any]:
    """Return what the block's hash covers besides tokens, without the adapter's name."""
    keys = event.extra_keys
    if keys is None or at >= len(keys) or not isinstance(keys[at], list | tuple):
        return []
    extras = list(keys[at])
    if event.adapter and event.adapter in extras:
        extras.remove(event.adapter)  # Only once, because a salt may have the same name.
    return extras


def _copy(held: Holdings, pool: Holdings, name: int) -> None:
    """Copy the rows of a block and of those before it from a replica to the pool."""
    path: list[int] = []
    row = held.row(name)
    while row is not None and row != ROOT and pool.row(held.name(row)) is None:
        path.append(row)
        row = held.parent(row)
    if row is None:
        return
    parent = ROOT if row == ROOT else pool.row(held.name(row))
    assert parent is not None
    known = ((held.name(row), held.state(row), held.depth(row)) for row in reversed(path))
    pool.add_path(known, parent)
