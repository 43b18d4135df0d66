"""Removing blocks of one shard: what is too old, and the coldest until enough is free.

Invariants: nothing that was written or read after `newest_s` goes, as far as the store tells: a
block's file is looked at again right before it is removed, and journals are read again while
this goes on; blocks leave whole.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np

from kvtier.evictor.budget import Amount, Usage, steps_of
from kvtier.evictor.journals import read_journals, recall
from kvtier.evictor.layouts import Tree
from kvtier.evictor.ranking import victims
from kvtier.evictor.table import Table
from kvtier.evictor.work import Work

RECALL_S: Final = 10.0
"""Journals are read again after it; readers write them as often."""


class Shrinking:
    """One tree's part of one shard, after its scan."""

    def __init__(self, work: Work, shard: str, tree: Tree, table: Table, other: Amount) -> None:
        self._work = work
        self._shard = shard
        self._tree = tree
        self._table = table
        self._other = other
        self._gone = np.zeros(len(table), dtype=np.bool_)
        self._hot: frozenset[bytes] = frozenset()
        self._recalled_s = -float("inf")

    @property
    def usage(self) -> Usage:
        """What is left. O(rows log rows)."""
        left_bytes = int(self._table.physical()[~self._gone].sum())
        files = int((~self._gone).sum())
        return Usage(
            size_bytes=left_bytes + self._other.size_bytes,
            inodes=files + self._other.inodes,
            files=files,
            steps=steps_of(self._table, self._gone),
        )

    def recall(self) -> None:
        """Take in what readers told so far. Raises OSError."""
        self._recalled_s = self._work.clock.now_s()
        known = self._work.journals.get(self._tree.name)
        journals = read_journals(self._work.store, self._tree, known)
        self._work.journals[self._tree.name] = journals
        uses = recall(self._work.store, self._tree, self._shard, journals)
        self._table.recall(uses)
        newest_s = self._work.newest_s
        self._hot = frozenset(key for key, use in uses.items() if use.last_s > newest_s)

    def expire(self) -> None:
        """Remove what nobody used within the time to live. Raises as `free`."""
        ttl_s = self._work.options.ttl_s
        if ttl_s is None:
            return
        oldest_s = min(self._work.now_s - ttl_s, self._work.newest_s)
        rows = np.flatnonzero(self._table.recency() < oldest_s)
        self._remove(iter(rows.tolist()), None, "ttl")

    def free(self, amount: Amount, reason: str) -> Amount:
        """Remove the coldest until `amount` is free; what is still missing.

        Raises Fenced, and OSError where it cannot be told who used what.
        """
        rows = victims(self._table, self._work.options.policy, self._work.newest_s)
        return self._remove((row for row in rows if not self._gone[row]), amount, reason)

    def _remove(self, rows: Iterator[int], amount: Amount | None, reason: str) -> Amount:
        missing = Amount() if amount is None else amount
        while amount is None or missing != Amount():
            row = next(rows, None)
            if row is None:
                break
            key = self._table.name(row)
            if self._may_go(row, key) and self._take(row, self._tree.unpack(key), reason):
                missing = missing.minus(Amount(self._table.sizes[row], 1))
        return missing

    def _may_go(self, row: int, key: bytes) -> bool:
        if self._work.clock.now_s() - self._recalled_s > RECALL_S:
            self.recall()
        return key not in self._hot and not self._gone[row]

    def _take(self, row: int, name: str, reason: str) -> bool:
        """Remove one file; True where it is gone, by us or by others."""
        size_bytes = self._table.sizes[row]
        try:
            stat = self._work.store.stat(name)
        except OSError as error:
            self._work.refused(f"stat {name}", error)
            return False
        if stat is None:
            self._gone[row] = True
            return True
        if stat.modified_s > self._table.written[row]:
            return False  # written again since it was scanned: it is in use
        if not self._work.remove(self._shard, name, size_bytes, reason):
            return False
        tree = self._work.report.tree(self._tree.name, is_foreign=self._tree.is_foreign)
        tree.freed.add(size_bytes)
        self._gone[row] = True
        return True
