"""Scanning a store: every file of a shard, and every file outside of the shards.

Reading a tree of millions of files takes minutes on a busy file system, and an evictor may die
meanwhile. Every SAVE_S a scan writes what it has seen, and the last name, to
`leases/cursor-<shard>.bin`; the next owner of the shard continues there. What is outside of the
shards is looked through rarely, by the owner of the lease `rest`.

Invariants: a file that stays is seen once in a scan; a folder that cannot be read is counted and
does not hide the others; files that were modified within the orphan time stay, by the store's
clock, because a writer may still need them; unknown files are removed only with
`--delete-unknown`; a lease is never removed here, nor anything in a folder that is excluded.
"""

import logging
import re
from collections.abc import Collection, Iterator
from typing import Final, NamedTuple, Protocol, runtime_checkable

import msgspec

from kvtier.errors import Corrupt
from kvtier.evictor.budget import Amount
from kvtier.evictor.context import Work
from kvtier.evictor.layouts import LEASES, SHARDS, Kind, Tree, kind_outside, recognise
from kvtier.evictor.leases import REST
from kvtier.evictor.listing import beginning, outside, read_small
from kvtier.evictor.segments import open_segments
from kvtier.evictor.table import Columns, Table
from kvtier.tiers.shared.folder import FileUsage
from kvtier.tiers.shared.store import Store, folder_of

CURSOR_LIVES_S: Final = 3600.0
"""An older one is of another time: the scan begins anew."""
_BYTES_MAX: Final = 1 << 30
_log = logging.getLogger(__name__)
SAVE_S: Final = 15.0
NOTES_LIVE_S: Final = 3600.0
"""A heartbeat, or a dry run's stamp, that old is of an evictor that is gone."""
_NOTE = re.compile(rf"({LEASES}/beat|now)-[0-9a-f]{{16}}")


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """A scan that is not finished."""

    tree: str
    """The one being scanned; those before it are finished."""
    after: str
    """The last name that was seen in it."""
    tables: dict[str, Columns]
    other: dict[str, tuple[int, int]]
    """Bytes and inodes of a tree that are no blocks."""


class Resumed(NamedTuple):
    """Where to go on."""

    tree: str
    after: str
    tables: dict[str, Table]
    other: dict[str, tuple[int, int]]


def put_progress(store: Store, shard: str, progress: Progress) -> None:
    """Raises OSError."""
    store.put(_cursor(shard), msgspec.msgpack.encode(progress))


def read_progress(store: Store, shard: str, now_s: float) -> Resumed | None:
    """Where the last owner of the shard stopped; None: begin at the beginning."""
    read = read_small(store, _cursor(shard), _BYTES_MAX)
    if read is None or read[1].modified_s < now_s - CURSOR_LIVES_S:
        return None
    try:
        found = msgspec.msgpack.decode(read[0], type=Progress)
        tables = {tree: Table.of(columns) for tree, columns in found.tables.items()}
    except (msgspec.MsgspecError, ValueError) as error:
        _log.warning("%s is damaged, the scan begins anew: %s", _cursor(shard), error)
        return None
    return Resumed(found.tree, found.after, tables, found.other)


def forget_progress(store: Store, shard: str) -> None:
    """The scan is finished. Raises OSError."""
    store.remove(_cursor(shard))


def _cursor(shard: str) -> str:
    return f"{LEASES}/cursor-{shard}.bin"


class HeaderCheck:
    """Of one tree, in one pass."""

    def __init__(self, work: Work, tree: Tree) -> None:
        """Raises OSError."""
        self._work = work
        self._tree = tree
        self._segments = open_segments(work.store, tree, work.options.key_file)

    def passes(self, shard: str, key: bytes, name: str) -> bool:
        """Whether the file stays where it is; one that was moved aside does not. One read."""
        if self._segments is None:
            return True
        try:
            self._segments.read(key, name)
        except OSError as error:
            self._work.refused(f"read the header of {name}", error)
            return True
        except Corrupt as error:
            self._work.report.note_broken(name, str(error))
            if not self._work.options.sweep_broken:
                return True
            return not self._moved_aside(shard, key, name, str(error))
        return True

    def _moved_aside(self, shard: str, key: bytes, name: str, reason: str) -> bool:
        self._work.keep(shard)
        if not self._work.options.dry_run:
            assert self._segments is not None
            try:
                self._segments.quarantine(key, reason)
            except OSError as error:
                self._work.refused(f"move {name} aside", error)
                return False
            self._work.announcer.removed(self._tree, [key])
        # It is still in the store, under another name: nothing was freed.
        self._work.report.freed["broken"].add(0)
        return True


def settle(work: Work, shard: str, found: FileUsage, kind: Kind) -> bool:
    """Do with a file what its kind asks for; True where it is gone, or would be."""
    is_old = found.modified_s < work.now_s - work.options.orphan_s
    if kind is Kind.TEMPORARY and is_old:
        return work.remove(shard, found.name, found.physical_bytes, "orphan")
    if kind is Kind.UNKNOWN:
        work.report.note_unknown(found.name, found.physical_bytes)
        if work.options.delete_unknown and is_old:
            return work.remove(shard, found.name, found.physical_bytes, "unknown")
    return False


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


@runtime_checkable
class HasFolders(Protocol):
    """A store where a folder is a thing of its own."""

    def folders(self, folder: str = "") -> Iterator[str]:
        """Those below `folder`, each after those in it."""
        ...

    def remove_folder(self, name: str) -> bool:
        """False where it is gone or not empty."""
        ...


def sweep_rest(work: Work, trees: list[Tree], left_alone: Collection[str]) -> dict[str, Amount]:
    """Look through everything outside of shards; what it takes up, by tree.

    `left_alone`: folders in which nothing is looked at. Raises Fenced, and OSError where a
    listing is refused.
    """
    by_name = {tree.name: tree for tree in trees}
    starts = [tree.shard(shard) for tree in trees for shard in SHARDS]
    starts += [f"{name}/" for name in left_alone]
    sizes: dict[str, Amount] = {}
    for found in outside(work.store, starts):
        work.see(REST)
        top = found.name.partition("/")[0]
        tree = by_name.get(top)
        kind = kind_outside(found.name) if tree is None else tree.kind(found.name)
        if _NOTE.fullmatch(found.name) and found.modified_s < work.now_s - NOTES_LIVE_S:
            work.remove(REST, found.name, found.physical_bytes, "orphan")
        elif not settle(work, REST, found, kind) and kind is not Kind.UNKNOWN:
            amount = Amount(found.physical_bytes, 1)
            sizes[top] = sizes.get(top, Amount()).plus(amount)
    return sizes


def sweep_folders(work: Work, trees: list[Tree]) -> None:
    """Remove empty folders, those in which a last file went too. Raises Fenced."""
    if not isinstance(work.store, HasFolders) or work.options.dry_run:
        return
    for tree in trees:
        if tree.is_foreign and not work.options.sweep_foreign_folders:
            continue
        try:
            for folder in work.store.folders(tree.name):
                work.keep(REST)
                work.report.folders_removed += work.store.remove_folder(folder)
        except OSError as error:
            work.refused(f"remove empty folders of {tree.name}", error)
