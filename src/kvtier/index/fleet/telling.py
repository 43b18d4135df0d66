"""One replica that tells what it holds: its events become rows of its own, or of the pool.

Blocks are hashed anew from the tokens in the events, so that prompts can be compared with them;
the engine's own hashes are names only. One KV-cache group counts, that of full attention: the
windows and states of other groups are kept or dropped with it, and say less about a prefix.

Invariants: rows are of one block size; an event that cannot be used is counted, by its blocks,
and changes nothing.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from kvtier.index.fleet.base import DEVICE
from kvtier.index.fleet.changes import Removed, Stored
from kvtier.index.fleet.expected import Expected
from kvtier.index.fleet.hashing import NUMBERS_MAX, Hasher, Scope, hash_of
from kvtier.index.fleet.holdings import ROOT, Holdings
from kvtier.index.fleet.levels import Levels
from kvtier.index.fleet.table import POOL, BlockTable

_PARTIAL: Final = ("sliding", "mamba", "chunked", "cross", "encoder", "linear")
"""In kinds of attention that need less than the whole prefix, or none of it."""


_SHELVES_MAX: Final = 256
"""Models times block sizes. No fleet has so many; a replica that makes them up is refused."""


class Shelf:
    """The replicas of one model whose blocks are of one size, and the storage they share."""

    def __init__(self, model: str, block_tokens: int, blocks_max: int, ttl_s: float) -> None:
        self.model = model
        self.table = BlockTable(block_tokens)
        self.expected = Expected(self.table, ttl_s)
        self.pool = Holdings(self.table, POOL, blocks_max, is_counted=False)
        self.replicas = 0


class Shelves:
    """All of an index, made as they are needed, and what its replicas have in common."""

    def __init__(self, hasher: Hasher, blocks_max: int, ttl_s: float) -> None:
        self.hasher = hasher
        self.levels = Levels()
        self.dropped: Counter[str] = Counter()
        self.blocks_max = blocks_max
        self._ttl_s = ttl_s
        self._shelves: dict[tuple[str, int], Shelf] = {}

    def enter(self, model: str, block_tokens: int) -> Shelf | None:
        """For one replica more; made where it is new, None where there are too many."""
        shelf = self._shelves.get((model, block_tokens))
        if shelf is None:
            if len(self._shelves) >= _SHELVES_MAX and not self._forget_one():
                return None
            shelf = Shelf(model, block_tokens, self.blocks_max, self._ttl_s)
            self._shelves[model, block_tokens] = shelf
        shelf.replicas += 1
        return shelf

    def _forget_one(self) -> bool:
        """The oldest of those whose replicas have all left."""
        for key, shelf in self._shelves.items():
            if not shelf.replicas:
                del self._shelves[key]
                return True
        return False

    def leave(self, shelf: Shelf) -> None:
        """One replica less; what is empty then is gone."""
        shelf.replicas -= 1
        if not shelf.replicas and not len(shelf.table):
            self._shelves.pop((shelf.model, shelf.table.block_tokens), None)

    def sweep(self) -> None:
        """Clear more of what was released, and drop what is empty and nobody's."""
        for shelf in list(self._shelves.values()):
            shelf.table.sweep()
            if not shelf.replicas and not len(shelf.table):
                del self._shelves[shelf.model, shelf.table.block_tokens]

    def all_of(self, model: str) -> list[Shelf]:
        """Of every block size."""
        return [shelf for shelf in self._shelves.values() if shelf.model == model]

    @property
    def pools(self) -> list[Holdings]:
        """Of every model and block size."""
        return [shelf.pool for shelf in self._shelves.values()]


class Teller:
    """A replica. It has a shelf, and `held`, once it has told how large its blocks are."""

    __slots__ = (
        "_group",
        "_is_device_empty",
        "_is_group_told",
        "_shelves",
        "held",
        "is_whole",
        "model",
        "shelf",
    )

    def __init__(self, model: str, shelves: Shelves) -> None:
        self.model = model
        self._shelves = shelves
        self.shelf: Shelf | None = None
        self.held: Holdings | None = None
        self.is_whole = False
        """Whether it has told all that it holds: engines tell a block once, when it comes."""
        self._group: int | None = None
        self._is_group_told = False
        self._is_device_empty = False
        """Since it was cleared; clearing costs a look at every block."""

    def begin(self) -> None:
        """It holds nothing that it has not told or will tell."""
        self.is_whole = True

    def clear(self) -> None:
        """It holds nothing that is known; its next event starts anew."""
        self._leave()
        self._group = None
        self._is_group_told = self.is_whole = False

    def _leave(self) -> None:
        if self.shelf is not None and self.held is not None:
            self.shelf.expected.forget(self.held.slot)
            self.shelf.table.release_slot(self.held.slot, self.held.hashes())
            self._shelves.leave(self.shelf)
        self.shelf = self.held = None

    def clear_device(self) -> None:
        """The device holds nothing any more.

        Slower tiers tell block by block what leaves them: an engine says the same whether it
        clears the device alone or all of them.
        """
        level = self._shelves.levels.use(DEVICE)
        if self.shelf is None or self.held is None or level is None:
            return
        if self.held.levels == 1 << level and not self.shelf.table.is_member(self.held.slot):
            self._leave()  # nothing is left, and a slot is swept piece by piece
            self.is_whole = True
            return
        self.shelf.expected.forget(self.held.slot)
        if not self._is_device_empty:
            self.held.empty(level)
        self._is_device_empty = True

    def store(self, stored: Stored) -> None:
        """Blocks entered a tier. 5 us for each that is new."""
        reason = self._refusal(stored)
        level = self._shelves.levels.use(stored.tier) if reason is None else None
        if reason is not None or level is None:
            self._shelves.dropped[reason or "tier"] += len(stored.names)
            return
        assert self.held is not None
        assert self.shelf is not None
        if stored.tier == DEVICE:
            self._is_device_empty = False
        if not stored.is_shared:
            self._hold(self.held, stored, level)
            return
        self.shelf.table.join_pool(self.held.slot)
        for name in (stored.parent, *stored.names):
            if name is not None:
                _copy(self.held, self.shelf.pool, name)
        self._hold(self.shelf.pool, stored, level)

    def remove(self, removed: Removed) -> None:
        """Blocks left a tier. 2 us each."""
        level = self._shelves.levels.use(removed.tier)
        dropped = self._shelves.dropped
        if level is None or self.held is None or self.shelf is None:
            dropped["unknown"] += len(removed.names)
        elif removed.group not in (None, self._group):
            dropped["group"] += len(removed.names)
        else:
            held = self.shelf.pool if removed.is_shared else self.held
            if removed.tier == DEVICE:
                self._withdraw(self.shelf, self.held, removed.names)
            dropped["unknown"] += let_go(held, removed.names, level)

    def _withdraw(self, shelf: Shelf, held: Holdings, names: Sequence[int]) -> None:
        rows = (row for name in names if (row := held.row(name)) is not None)
        shelf.expected.withdraw(held.slot, (hash_of(held.state(row)) for row in rows))

    # -- whether an event can be used ------------------------------------------------------

    def _refusal(self, stored: Stored) -> str | None:
        """Why it cannot; None where it can, and `held` is there."""
        if any(part in stored.kind for part in _PARTIAL):
            return "group"
        size = stored.block_tokens if stored.token_ids else 0
        if stored.token_ids and len(stored.token_ids) != size * len(stored.names):
            # Also of groups that keep some blocks only, where the engine does not say so.
            return "malformed"
        if stored.kind and not self._is_group_told:
            if self._group not in (None, stored.group):
                self.clear()
            self._group, self._is_group_told = stored.group, True
        elif self._group is None and size:
            self._group = stored.group
        if stored.group != self._group:
            return "group" if self._group is not None else "unknown"
        return None if self._settle(size) else "block_size"

    def _settle(self, block_tokens: int) -> bool:
        """Whether blocks of this size (0: not told) can be taken; the largest is the size.

        An engine whose hashes are finer than its blocks tells the last part of a prompt as a
        block of its own, which may be all that it has told so far.
        """
        if self.shelf is not None and block_tokens <= self.shelf.table.block_tokens:
            return block_tokens in (0, self.shelf.table.block_tokens)
        if not 0 < block_tokens <= NUMBERS_MAX:
            return False
        self._leave()
        self.shelf = self._shelves.enter(self.model, block_tokens)
        if self.shelf is None:
            return False
        table = self.shelf.table
        self.held = Holdings(table, table.take_slot(), self._shelves.blocks_max)
        return True

    # -- rows ------------------------------------------------------------------------------

    def _hold(self, held: Holdings, stored: Stored, level: int) -> None:
        parent = ROOT if stored.parent is None else held.row(stored.parent)
        for at, name in enumerate(stored.names):
            row = held.row(name)
            if row is None:
                row = self._grow(held, stored, at, parent)
            if row is not None:
                held.hold(row, level)
            parent = row

    def _grow(self, held: Holdings, stored: Stored, at: int, parent: int | None) -> int | None:
        """A row for block `at` of the event; None, and counted, where it cannot be placed."""
        dropped = self._shelves.dropped
        if not stored.token_ids:
            dropped["unknown"] += 1
            return None
        if parent is None:
            dropped["orphan"] += 1
            return None
        size = stored.block_tokens
        hasher = self._shelves.hasher
        extras = _extras(stored, at)
        if parent == ROOT:
            salt = next((extra for extra in extras if isinstance(extra, str)), "")
            extras = [extra for extra in extras if not isinstance(extra, str)]
            state, depth = hasher.seed(Scope(stored.adapter or self.model, salt)), 0
        else:
            state, depth = held.state(parent), held.depth(parent)
        if (depth + 1) * size > NUMBERS_MAX:
            dropped["too_long"] += 1
            return None
        tokens = stored.token_ids[at * size : (at + 1) * size]
        state = hasher.extend(state, depth * size, tokens)
        for extra in extras:
            state = (state + hasher.digest(msgspec.msgpack.encode(extra))) % (1 << 64)
        return held.add(stored.names[at], state, depth + 1, parent)


def let_go(held: Holdings, names: Sequence[int], level: int) -> int:
    """Blocks left a tier; how many of them are not known."""
    unknown = 0
    for name in names:
        row = held.row(name)
        if row is None:
            unknown += 1
        else:
            held.let_go(row, level)
    return unknown


def _extras(stored: Stored, at: int) -> list[Any]:
    """What besides tokens is in the block's hash, without the adapter's name."""
    keys = stored.extra_keys
    if keys is None or at >= len(keys) or not isinstance(keys[at], list | tuple):
        return []
    extras = list(keys[at])
    if stored.adapter and stored.adapter in extras:
        extras.remove(stored.adapter)  # once: a salt may be called the same
    return extras


def _copy(held: Holdings, pool: Holdings, name: int) -> None:
    """Make known to the pool what a replica knows of a block and those before it."""
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
