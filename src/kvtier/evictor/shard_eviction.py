"""Eviction from one shard: blocks that are too old, and the coldest until enough space is free.

Invariants: no block is removed that was written or read after `newest_s`, as far as the store
tells: a block's file is looked at again right before it is removed, and journals are read again
meanwhile; whole blocks are removed.
"""

import errno
import logging
from collections.abc import Iterator, Sequence
from math import inf
from typing import Final, NamedTuple

import numpy as np

from kvtier.clock import Clock
from kvtier.evictor.budget import Amount, Usage, steps_of
from kvtier.evictor.context import PassContext
from kvtier.evictor.events import Announcer
from kvtier.evictor.journals import read_journals, read_uses
from kvtier.evictor.layouts import SHARDS, FileTreatment, StoreTree
from kvtier.evictor.listing import with_prefix
from kvtier.evictor.options import EvictorOptions
from kvtier.evictor.report import PassObserver, PassReport
from kvtier.evictor.table import Table, victims
from kvtier.tiers.shared.store import Store

_log = logging.getLogger(__name__)

USES_REFRESH_S: Final = 10.0
"""Time after which journals are read again; readers write them as often."""
ROOM: Final = Amount(64 << 20, 16)
"""What is freed in a store that is too full for a heartbeat."""
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""The errors of a store that is full."""

_BATCH_FILES: Final = 10_000
"""Files in a batch, which is removed in the order of names."""


class _LastLook(NamedTuple):
    """The state of a file right before it is removed."""

    used_s: float
    """When it was written; in other systems' trees, when it was last read."""
    size_bytes: int


class ShardEviction:
    """Eviction from one tree's part of one shard, after its scan."""

    def __init__(
        self, context: PassContext, shard: str, tree: StoreTree, table: Table, other: Amount
    ) -> None:
        self._context = context
        self._shard = shard
        self._tree = tree
        self._table = table
        self._other = other
        self._gone = np.zeros(len(table), dtype=np.bool_)
        self._hot: frozenset[bytes] = frozenset()
        self._uses_read_s = -inf

    @property
    def usage(self) -> Usage:
        """The space that is still in use, with its steps. O(rows log rows)."""
        left_bytes = int(self._table.physical()[~self._gone].sum())
        files = int((~self._gone).sum())
        # While the reads are unknown nothing can be evicted, so no steps are offered.
        steps = steps_of(self._table, self._gone) if self.knows_reads else []
        return Usage(
            size_bytes=left_bytes + self._other.size_bytes,
            inodes=files + self._other.inodes,
            files=files,
            steps=steps,
        )

    @property
    def knows_reads(self) -> bool:
        """True once `update_uses` has succeeded; nothing is removed before."""
        return self._uses_read_s > -inf

    def update_uses(self) -> None:
        """Read journals and summaries, and update the recency of the rows. Raises OSError."""
        began_s = self._context.clock.now_s()
        known = self._context.journals.get(self._tree.name)
        newest_s = self._context.newest_s
        journals = read_journals(self._context.store, self._tree, known, spared_s=newest_s)
        self._context.journals[self._tree.name] = journals
        uses = read_uses(self._context.store, self._tree, self._shard, journals)
        self._table.update_uses(uses)
        self._hot = frozenset(key for key, use in uses.items() if use.last_s > newest_s)
        self._uses_read_s = began_s

    def expire(self) -> None:
        """Remove blocks that were not used within the time to live. Raises as `free`."""
        ttl_s = self._context.options.ttl_s
        if ttl_s is None or not self.knows_reads:
            return
        oldest_s = min(self._context.now_s - ttl_s, self._context.newest_s)
        rows = np.flatnonzero(self._table.recency() < oldest_s)
        self._remove(iter(rows.tolist()), None, "ttl")

    def free(self, amount: Amount, reason: str) -> Amount:
        """Evict the coldest blocks until `amount` is free; return what is still missing.

        Raises Fenced, and OSError if journals cannot be read.
        """
        rows = victims(self._table, self._context.options.policy, self._context.newest_s)
        return self._remove((row for row in rows if not self._gone[row]), amount, reason)

    def _remove(self, rows: Iterator[int], amount: Amount | None, reason: str) -> Amount:
        try:
            return self._remove_until(rows, amount, reason)
        finally:
            self._context.announcer.flush()

    def _remove_until(self, rows: Iterator[int], amount: Amount | None, reason: str) -> Amount:
        missing = Amount() if amount is None else amount
        while amount is None or missing != Amount():
            batch = self._batch(rows, None if amount is None else missing)
            if not batch:
                break
            for row in sorted(batch, key=self._table.name):
                key = self._table.name(row)
                if self._may_evict(row, key) and self._evict(row, self._tree.unpack(key), reason):
                    missing = missing.minus(Amount(self._table.sizes[row], 1))
        return missing

    def _batch(self, rows: Iterator[int], missing: Amount | None) -> list[int]:
        """Return the next rows to evict: enough for `missing`, or _BATCH_FILES if that is None.

        A batch is removed in the order of names, so folder by folder. On a disk that takes half
        the time of removing in the order of age.
        """
        batch: list[int] = []
        for row in rows:
            batch.append(row)
            if missing is not None:
                missing = missing.minus(Amount(self._table.sizes[row], 1))
                if missing == Amount():
                    break
            if len(batch) == _BATCH_FILES:
                break
        return batch

    def _may_evict(self, row: int, key: bytes) -> bool:
        if self._context.clock.now_s() - self._uses_read_s > USES_REFRESH_S:
            self.update_uses()
        return key not in self._hot and not self._gone[row]

    def _look(self, name: str) -> _LastLook | None:
        """Return the current state of a file; None if it is missing. Raises OSError.

        In other systems' trees only the access time tells of reads. A `Stat` does not contain it,
        so the file's folder is listed, which holds a few files in those layouts.
        """
        if not self._tree.is_foreign:
            stat = self._context.store.stat(name)
            return None if stat is None else _LastLook(stat.modified_s, stat.size)
        found = next(with_prefix(self._context.store, name), None)
        if found is None or found.name != name:
            return None
        return _LastLook(found.accessed_s, found.physical_bytes)

    def _evict(self, row: int, name: str, reason: str) -> bool:
        """Remove one file; return True if it is gone, also if another process removed it."""
        context, tree, size_bytes = self._context, self._tree, self._table.sizes[row]
        try:
            seen = self._look(name)
        except OSError as error:
            context.note_refused(f"stat {name}", error)
            return False
        if seen is None:
            self._gone[row] = True
            return True
        known_s = self._table.recent if tree.is_foreign else self._table.written
        if seen.used_s > known_s[row]:
            return False  # It was used after the scan.
        blocks: Sequence[bytes] = ()
        if not context.options.dry_run:
            blocks = context.announcer.contents(tree, self._table.name(row), name, seen.size_bytes)
        if not context.remove(self._shard, name, size_bytes, reason):
            return False
        if blocks:
            context.announcer.removed(tree, blocks)
        context.report.tree(tree.name, is_foreign=tree.is_foreign).freed.add(size_bytes)
        self._gone[row] = True
        return True


def make_room(
    store: Store,
    trees: list[StoreTree],
    options: EvictorOptions,
    clock: Clock,
    observer: PassObserver,
    report: PassReport,
    announcer: Announcer,
) -> Amount:
    """Free about `ROOM` in a store that is too full for a heartbeat; return what is missing.

    An evictor that needed space to free space would stand still when it is needed most. So if the
    store answers ENOSPC or EDQUOT, a little is freed without a lease: the coldest blocks of one
    shard after another. If two evictors do so at the same time, twice as much is freed.

    Blocks used in the grace period stay. It ends with the newest file seen, because the store's
    clock cannot be read without writing. Raises OSError if the store refuses other calls.
    """
    missing = ROOM
    for shard in SHARDS:
        for tree in trees:
            table, newest_s = _scan(store, shard, tree)
            if missing == Amount() or not len(table):
                continue
            context = PassContext(
                store, options, clock, _no_lease, newest_s, observer, report, announcer
            )
            part = ShardEviction(context, shard, tree, table, Amount())
            part.update_uses()
            missing = part.free(missing, "bound")
        if missing == Amount():
            break
    _log.warning("the store is full; freed %d bytes", ROOM.minus(missing).size_bytes)
    return missing


def _no_lease(shard: str) -> None:
    """Do nothing in place of renewing a lease; a full store has no room for one."""


def _scan(store: Store, shard: str, tree: StoreTree) -> tuple[Table, float]:
    table = Table()
    for found in with_prefix(store, tree.shard(shard)):
        if tree.kind(found.name) is FileTreatment.BLOCK:
            recent_s = found.accessed_s if tree.is_foreign else found.modified_s
            key = tree.pack(found.name)
            table.add(key, found.physical_bytes, found.modified_s, recent_s)
    return table, float(np.max(table.recency(), initial=0.0))
