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
from kvtier.evictor.context import PassContext
from kvtier.evictor.layouts import LEASES, SHARDS, FileTreatment, StoreTree, kind_outside, tree_at
from kvtier.evictor.leases import REST
from kvtier.evictor.listing import outside, read_small, with_prefix
from kvtier.evictor.segments import open_segment_reader
from kvtier.evictor.table import Columns, Table
from kvtier.tiers.shared.folder import FileUsage
from kvtier.tiers.shared.store import Store, folder_of

_log = logging.getLogger(__name__)

CURSOR_LIVES_S: Final = 3600.0
"""Age from which a cursor is ignored; the scan then starts at the beginning."""
SAVE_S: Final = 15.0
"""Time between two writes of the cursor."""
NOTES_LIVE_S: Final = 3600.0
"""Age from which a heartbeat, or the stamp of a dry run, counts as left by a dead evictor."""

_CURSOR_BYTES_MAX: Final = 1 << 30
_NOTE = re.compile(rf"({LEASES}/beat|now)-[0-9a-f]{{16}}")


class ScanCursor(msgspec.Struct, frozen=True, array_like=True):
    """The state of an unfinished scan, as it is stored."""

    tree: str
    """The tree being scanned; the trees before it are finished."""
    after: str
    """The last name that was seen in the tree."""
    tables: dict[str, Columns]
    other: dict[str, tuple[int, int]]
    """Bytes and inodes of files that are not blocks, and of folders, by tree."""


class ResumedScan(NamedTuple):
    """The decoded state of an unfinished scan, from which another evictor continues."""

    tree: str
    after: str
    tables: dict[str, Table]
    other: dict[str, tuple[int, int]]


def put_cursor(store: Store, shard: str, cursor: ScanCursor) -> None:
    """Store the state of a scan of `shard`. Raises OSError."""
    store.put(_cursor_name(shard), msgspec.msgpack.encode(cursor))


def read_cursor(store: Store, shard: str, now_s: float) -> ResumedScan | None:
    """Return the state in which the shard's last owner stopped, or None to start anew.

    A cursor that is missing, old or damaged is ignored. Raises OSError.
    """
    read = read_small(store, _cursor_name(shard), _CURSOR_BYTES_MAX)
    if read is None or read[1].modified_s < now_s - CURSOR_LIVES_S:
        return None
    try:
        found = msgspec.msgpack.decode(read[0], type=ScanCursor)
        tables = {tree: Table.of(columns) for tree, columns in found.tables.items()}
    except (msgspec.MsgspecError, ValueError) as error:
        _log.warning("%s is damaged, so the scan starts anew: %s", _cursor_name(shard), error)
        return None
    return ResumedScan(found.tree, found.after, tables, found.other)


def remove_cursor(store: Store, shard: str) -> None:
    """Remove the state of a finished scan. Raises OSError."""
    store.remove(_cursor_name(shard))


def _cursor_name(shard: str) -> str:
    return f"{LEASES}/cursor-{shard}.bin"


class HeaderCheck:
    """A check of the segment headers of one tree, in one pass.

    Readers quarantine the broken segments that they read; segments that are not read keep their
    space until they are checked. A check reads at least a page of each file, so it is made only
    with `--check-headers`. A tree is not checked if it has no manifest, or if its checksums need
    a secret that is not given.
    """

    def __init__(self, context: PassContext, tree: StoreTree) -> None:
        """Read the manifest of `tree`. Raises OSError."""
        self._context = context
        self._tree = tree
        self._segments = open_segment_reader(context.store, tree, context.options.key_file)

    def passes(self, shard: str, key: bytes, name: str) -> bool:
        """Check a file with one read; return False if it was moved to quarantine."""
        if self._segments is None:
            return True
        try:
            self._segments.read(key, name)
        except OSError as error:
            self._context.note_refused(f"read the header of {name}", error)
            return True
        except Corrupt as error:
            self._context.report.note_broken(name, str(error))
            if not self._context.options.sweep_broken:
                return True
            return not self._quarantine(shard, key, name, str(error))
        return True

    def _quarantine(self, shard: str, key: bytes, name: str, reason: str) -> bool:
        self._context.keep(shard)
        if not self._context.options.dry_run:
            assert self._segments is not None
            try:
                self._segments.quarantine(key, reason)
            except OSError as error:
                self._context.note_refused(f"move {name} to quarantine", error)
                return False
            self._context.announcer.removed(self._tree, [key])
        # The file is still in the store under another name, so nothing was freed.
        self._context.report.freed["broken"].add(0)
        return True


def handle_other(context: PassContext, shard: str, found: FileUsage, kind: FileTreatment) -> bool:
    """Remove or count a file that is not a block; return True if it was (or would be) removed."""
    is_old = found.modified_s < context.now_s - context.options.orphan_s
    if kind is FileTreatment.TEMPORARY and is_old:
        return context.remove(shard, found.name, found.physical_bytes, "orphan")
    if kind is FileTreatment.UNKNOWN:
        context.report.note_unknown(found.name, found.physical_bytes)
        if context.options.delete_unknown and is_old:
            return context.remove(shard, found.name, found.physical_bytes, "unknown")
    return False


class Scan:
    """The files of one shard, by tree, as `scan_shard` finds them."""

    def __init__(self, resumed: ResumedScan | None = None) -> None:
        self.tables: dict[str, Table] = resumed.tables if resumed else {}
        self.other: dict[str, Amount] = {}
        """Space of files that are not blocks, and of folders."""
        if resumed:
            self.other = {tree: Amount(*pair) for tree, pair in resumed.other.items()}

    def add_other(self, tree: str, size_bytes: int, inodes: int) -> None:
        """Count a file that is not a block, or a folder."""
        self.other[tree] = self.other.get(tree, Amount()).plus(Amount(size_bytes, inodes))

    def cursor(self, tree: str, after: str) -> ScanCursor:
        """Return the state of the scan after it has seen the name `after` in `tree`."""
        tables = {name: table.columns() for name, table in self.tables.items()}
        return ScanCursor(
            tree,
            after,
            tables,
            {name: (one.size_bytes, one.inodes) for name, one in self.other.items()},
        )


def scan_shard(context: PassContext, shard: str, trees: list[StoreTree]) -> Scan:
    """Scan a shard in all `trees`, or continue an unfinished scan.

    Raises Fenced, and OSError if the cursor cannot be read or removed. A folder that cannot be
    read is counted.
    """
    keeps = not context.options.dry_run
    resumed = read_cursor(context.store, shard, context.now_s) if keeps else None
    if resumed is not None and not _is_in_shard(resumed, shard):
        _log.warning("the cursor of shard %s names files outside of it and is ignored", shard)
        resumed = None
    scan = Scan(resumed)
    for tree in sorted(trees):
        after = ""
        # A tree that is missing in `resumed` is new, also if its name sorts before the cursor.
        if resumed is not None and tree.name in resumed.tables:
            if tree.name < resumed.tree:
                continue
            after = resumed.after if tree.name == resumed.tree else ""
        _scan_tree(context, scan, shard, tree, after)
    if keeps:
        remove_cursor(context.store, shard)
    names = {tree.name for tree in trees}
    scan.tables = {name: table for name, table in scan.tables.items() if name in names}
    return scan


def _is_in_shard(resumed: ResumedScan, shard: str) -> bool:
    """Return True if all names are blocks of this shard; other programs may write a cursor."""
    for name, table in resumed.tables.items():
        tree = tree_at(name)
        if tree is None:
            return False
        try:
            names = [tree.unpack(table.name(row)) for row in range(len(table))]
        except ValueError:
            return False
        start = tree.shard(shard)
        if not all(
            one.startswith(start) and tree.kind(one) is FileTreatment.BLOCK for one in names
        ):
            return False
    return True


def _save_cursor(context: PassContext, scan: Scan, shard: str, tree: StoreTree, after: str) -> None:
    try:
        put_cursor(context.store, shard, scan.cursor(tree.name, after))
    except OSError as error:
        context.note_refused(f"write the cursor of shard {shard}", error)


def _scan_tree(context: PassContext, scan: Scan, shard: str, tree: StoreTree, after: str) -> None:
    table = scan.tables.setdefault(tree.name, Table())
    check = HeaderCheck(context, tree) if context.options.check_headers else None
    saved_s = context.clock.now_s()
    folder = folder_of(after)
    try:
        for found in with_prefix(context.store, tree.shard(shard), after):
            context.before_file(shard)
            name = found.name
            if folder_of(name) != folder:
                folder = folder_of(name)
                scan.add_other(tree.name, 0, 1)
            kind = tree.kind(name)
            if kind is FileTreatment.BLOCK:
                key = tree.pack(name)
                if check is None or check.passes(shard, key, name):
                    recent_s = found.accessed_s if tree.is_foreign else found.modified_s
                    table.add(key, found.physical_bytes, found.modified_s, recent_s)
            elif (
                not handle_other(context, shard, found, kind) and kind is not FileTreatment.UNKNOWN
            ):
                scan.add_other(tree.name, found.physical_bytes, 1)
            if context.clock.now_s() - saved_s > SAVE_S and not context.options.dry_run:
                _save_cursor(context, scan, shard, tree, name)
                saved_s = context.clock.now_s()
    except OSError as error:
        context.note_refused(f"scan {tree.shard(shard)}", error)


@runtime_checkable
class HasFolders(Protocol):
    """A store in which folders exist by themselves, unlike in a bucket."""

    def folders(self, folder: str = "") -> Iterator[str]:
        """List the folders below `folder`, each after the folders in it."""
        ...

    def remove_folder(self, name: str) -> bool:
        """Remove an empty folder; return False if it is missing or not empty."""
        ...


def sweep_rest(
    context: PassContext, trees: list[StoreTree], left_alone: Collection[str]
) -> dict[str, Amount]:
    """Look through all files outside of the shards; return the space they take up, by tree.

    Removes orphans and the notes of dead evictors. `left_alone` are names below which nothing is
    looked at. Raises Fenced, and OSError if the store cannot be listed.
    """
    by_name = {tree.name: tree for tree in trees}
    starts = [tree.shard(shard) for tree in trees for shard in SHARDS]
    starts += [f"{name}/" for name in left_alone]
    sizes: dict[str, Amount] = {}
    for found in outside(context.store, starts):
        context.before_file(REST)
        top = found.name.partition("/")[0]
        tree = by_name.get(top)
        kind = kind_outside(found.name) if tree is None else tree.kind(found.name)
        if _NOTE.fullmatch(found.name) and found.modified_s < context.now_s - NOTES_LIVE_S:
            context.remove(REST, found.name, found.physical_bytes, "orphan")
        elif not handle_other(context, REST, found, kind) and kind is not FileTreatment.UNKNOWN:
            amount = Amount(found.physical_bytes, 1)
            sizes[top] = sizes.get(top, Amount()).plus(amount)
    return sizes


def sweep_folders(context: PassContext, trees: list[StoreTree]) -> None:
    """Remove empty folders, also those that became empty in this pass. Raises Fenced."""
    if not isinstance(context.store, HasFolders) or context.options.dry_run:
        return
    for tree in trees:
        if tree.is_foreign and not context.options.sweep_foreign_folders:
            continue
        try:
            for folder in context.store.folders(tree.name):
                context.keep(REST)
                context.report.folders_removed += context.store.remove_folder(folder)
        except OSError as error:
            context.note_refused(f"remove empty folders of {tree.name}", error)
