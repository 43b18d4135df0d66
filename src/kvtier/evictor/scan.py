"""Scanning one shard: every file of it in every tree, resumable, at a limited rate.

Why: a tree of millions of files takes minutes to read on a busy file system, and evictors die.
Every SAVE_S what was seen and the last name go into the store; who takes over goes on there.

Invariants: a file that stays is seen once in a scan; blocks go into tables, everything else is
settled at once; a folder that cannot be read is counted and does not hide the others.
"""

import logging
from typing import Final

from kvtier.evictor.broken import HeaderCheck
from kvtier.evictor.budget import Amount
from kvtier.evictor.layouts import Kind, Tree, recognise
from kvtier.evictor.listing import beginning
from kvtier.evictor.records import Progress, Resumed, forget_progress, put_progress, read_progress
from kvtier.evictor.sightings import settle
from kvtier.evictor.table import Table
from kvtier.evictor.work import Work
from kvtier.tiers.shared.store import folder_of

_log = logging.getLogger(__name__)

SAVE_S: Final = 15.0


class Scan:
    """What lies in one shard, by tree. Built by `scan_shard`."""

    def __init__(self, resumed: Resumed | None = None) -> None:
        self.tables: dict[str, Table] = resumed.tables if resumed else {}
        self.other: dict[str, Amount] = {}
        """What is no block, and folders."""
        if resumed:
            self.other = {tree: Amount(*pair) for tree, pair in resumed.other.items()}

    def add_other(self, tree: str, size_bytes: int, inodes: int) -> None:
        """A file that is no block, or a folder."""
        self.other[tree] = self.other.get(tree, Amount()).plus(Amount(size_bytes, inodes))

    def progress(self, tree: str, after: str) -> Progress:
        """As it is put into the store."""
        tables = {name: table.columns() for name, table in self.tables.items()}
        return Progress(
            tree,
            after,
            tables,
            {name: (one.size_bytes, one.inodes) for name, one in self.other.items()},
        )


def scan_shard(work: Work, shard: str, trees: list[Tree]) -> Scan:
    """All of a shard. Raises Fenced; OSError only where progress cannot be kept."""
    keeps = not work.options.dry_run
    resumed = read_progress(work.store, shard, work.now_s) if keeps else None
    if resumed is not None and not _is_of(resumed, shard):
        _log.warning("what is left of a scan of shard %s names other files: it is ignored", shard)
        resumed = None
    scan = Scan(resumed)
    for tree in sorted(trees):
        after = ""
        # A tree that is not in `resumed` appeared since then, wherever it stands in the order.
        if resumed is not None and tree.name in resumed.tables:
            if tree.name < resumed.tree:
                continue
            after = resumed.after if tree.name == resumed.tree else ""
        _scan_tree(work, scan, shard, tree, after)
    if keeps:
        forget_progress(work.store, shard)
    names = {tree.name for tree in trees}
    scan.tables = {name: table for name, table in scan.tables.items() if name in names}
    return scan


def _is_of(resumed: Resumed, shard: str) -> bool:
    """Whether all that was seen are blocks of this shard: anybody may write to a store."""
    for name, table in resumed.tables.items():
        tree = recognise(name)
        if tree is None:
            return False
        try:
            names = [tree.unpack(table.name(row)) for row in range(len(table))]
        except ValueError:
            return False
        start = tree.shard(shard)
        if not all(one.startswith(start) and tree.kind(one) is Kind.BLOCK for one in names):
            return False
    return True


def _save(work: Work, scan: Scan, shard: str, tree: Tree, after: str) -> None:
    try:
        put_progress(work.store, shard, scan.progress(tree.name, after))
    except OSError as error:
        work.refused(f"keep the progress of shard {shard}", error)


def _scan_tree(work: Work, scan: Scan, shard: str, tree: Tree, after: str) -> None:
    table = scan.tables.setdefault(tree.name, Table())
    check = HeaderCheck(work, tree) if work.options.check_headers else None
    saved_s = work.clock.now_s()
    folder = folder_of(after)
    try:
        for found in beginning(work.store, tree.shard(shard), after):
            work.see(shard)
            name = found.name
            if folder_of(name) != folder:
                folder = folder_of(name)
                scan.add_other(tree.name, 0, 1)
            kind = tree.kind(name)
            if kind is Kind.BLOCK:
                key = tree.pack(name)
                if check is None or check.passes(shard, key, name):
                    recent_s = found.accessed_s if tree.is_foreign else found.modified_s
                    table.add(key, found.physical_bytes, found.modified_s, recent_s)
            elif not settle(work, shard, found, kind) and kind is not Kind.UNKNOWN:
                scan.add_other(tree.name, found.physical_bytes, 1)
            if work.clock.now_s() - saved_s > SAVE_S and not work.options.dry_run:
                _save(work, scan, shard, tree, name)
                saved_s = work.clock.now_s()
    except OSError as error:
        work.refused(f"scan {tree.shard(shard)}", error)
