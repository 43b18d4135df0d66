"""Segments whose header fails: found by reading each header, moved aside where asked for.

Why: readers quarantine what they trip over; what nobody reads keeps its place until somebody
looks. Costs a read of a page for each file, so it is done on request. A tree without a manifest,
or whose checksums need a secret that was not given, is not judged.
"""

from kvtier.errors import Corrupt, InvalidSettings
from kvtier.evictor.layouts import Tree
from kvtier.evictor.reading import read_small
from kvtier.evictor.segments import MANIFEST_BYTES_MAX, open_segments
from kvtier.evictor.work import Work
from kvtier.tiers.files import MANIFEST_NAME, manifest_format
from kvtier.tiers.shared.manifest import FORMAT
from kvtier.tiers.shared.store import Store


def refusal(store: Store, tree: Tree) -> str | None:
    """Why a tree must not be touched: its manifest is of a format this program does not know.

    Or it cannot be read, so nobody knows its format. A manifest that is missing or damaged is no
    reason: names say what may be evicted. Never raises for one tree: others can be looked after.
    """
    if tree.is_foreign:
        return None
    name = f"{tree.name}/{MANIFEST_NAME}"
    try:
        read = read_small(store, name, MANIFEST_BYTES_MAX)
    except OSError as error:
        return f"{name} cannot be read ({error.strerror or error}); let this user read it"
    if read is None:
        return None
    try:
        found = manifest_format(read[0])
    except InvalidSettings:
        return None
    if found == FORMAT:
        return None
    return (
        f"{name} is of format {found}, this kvtier knows {FORMAT}; run the evictor of that version"
    )


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
