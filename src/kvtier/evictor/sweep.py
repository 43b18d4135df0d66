"""What lies outside of the shards: orphans, strangers' files, dead evictors' notes, empty folders.

Why: one evictor at a time, the owner of the lease `rest`, looks through it, rarely. Invariant:
no lease, and nothing below a folder that is to be left alone, is ever removed here.
"""

import re
from collections.abc import Collection, Iterator
from typing import Final, Protocol, runtime_checkable

from kvtier.evictor.budget import Amount
from kvtier.evictor.layouts import LEASES, SHARDS, Kind, Tree, kind_outside
from kvtier.evictor.leases import REST
from kvtier.evictor.listing import outside
from kvtier.evictor.sightings import settle
from kvtier.evictor.work import Work

NOTES_LIVE_S: Final = 3600.0
"""A heartbeat, or a dry run's stamp, that old is of an evictor that is gone."""
_NOTE = re.compile(rf"({LEASES}/beat|now)-[0-9a-f]{{16}}")


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
