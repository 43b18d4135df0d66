"""Converts blocks of a key space into a tree of vLLM's `fs` tier.

Invariant: each block that is written to the tree was read in this run and matched its checksum in
a verified header, because vLLM cannot verify it later.
"""

from collections.abc import Callable, Iterator

from kvtier.conversion.trees import GROUP_BYTES, FoundTree, share_done
from kvtier.conversion.work import BlockResult, ConversionJob, settled
from kvtier.errors import Corrupt
from kvtier.inspection.segments import Rules, read_block, read_header
from kvtier.inspection.view import Entry, NotRegularFile, View, is_unreachable
from kvtier.tiers.shared.format import Segment, parse_segment_name
from kvtier.tiers.shared.reading import aligned_buffer
from kvtier.tiers.shared.store import Store, is_temporary


class Exporter:
    """Makes a job for each block of a key space. Jobs are safe from any thread."""

    def __init__(
        self,
        source: View,
        space_folder: str,
        rules: Rules,
        tree: FoundTree,
        destination: View,
        store: Store | None,
    ) -> None:
        """Export to `store`, which `destination` shows; None: read headers, write nothing."""
        self._source = source
        self._space_folder = space_folder
        self._rules = rules
        self._tree = tree
        self._destination = destination
        self._store = store

    def jobs(
        self, on_unreadable: Callable[[str, OSError], None]
    ) -> Iterator[tuple[float, ConversionJob]]:
        """Yield a job per block, in the order of the segments' names, with the share walked."""
        blocks = f"{self._space_folder}/blocks"
        for entry in self._source.walk(blocks, _is_fan_out, on_unreadable):
            share = share_done(entry.name.partition("/")[2])
            for job in self._segment(entry):
                yield share, job

    def _segment(self, entry: Entry) -> Iterator[ConversionJob]:
        name = entry.name
        first = parse_segment_name(name.partition("/")[2])
        if is_temporary(name.rpartition("/")[2]):
            return
        if first is None or not entry.is_file:
            yield settled(BlockResult(name, "irregular" if first else "unknown"))
            return
        try:
            segment = read_header(self._source, name, self._rules, first)
        except Corrupt as error:
            yield settled(BlockResult(name, "damaged", reason=str(error)))
            return
        except NotRegularFile:
            yield settled(BlockResult(name, "irregular"))
            return
        except OSError as error:
            yield settled(_unreadable(name, error))
            return
        if segment is not None:
            for number in range(len(segment.keys)):
                yield self._job(name, segment, number)

    def _job(self, name: str, segment: Segment, number: int) -> ConversionJob:
        key = segment.keys[number]

        def run() -> BlockResult:
            if any(key[-GROUP_BYTES:]):
                return BlockResult(name, "unknown")
            target = self._tree.block_name(key)
            found = self._found(target, segment.slot_bytes)
            if found is not None:
                return BlockResult(target, found)
            if self._store is None:
                return BlockResult(name, "converted", segment.block_bytes)
            return self._convert(name, segment, number, self._store)

        return run

    def _found(self, target: str, file_bytes: int) -> str | None:
        """Return the result if the target exists already; None if it is free."""
        try:
            found = self._destination.stat(target)
        except NotRegularFile:
            return "occupied"
        if found is None:
            return None
        return "existed" if found.size == file_bytes else "occupied"

    def _convert(self, name: str, segment: Segment, number: int, store: Store) -> BlockResult:
        key = segment.keys[number]
        slot = aligned_buffer(segment.slot_bytes)
        try:
            filled_bytes = read_block(self._source, name, segment, number, slot)
        except OSError as error:
            return _unreadable(name, error)
        if filled_bytes is None:
            return BlockResult(name, "missing")
        payload = slot[: segment.block_bytes]
        is_whole = filled_bytes == len(slot)
        if not is_whole or self._rules.checksum.block(key, payload) != segment.checksums[number]:
            return BlockResult(name, "damaged", reason=f"block {number} differs from its checksum")
        slot[segment.block_bytes :] = 0  # the checksum does not cover the padding
        if store.publish(self._tree.block_name(key), [slot]):
            return BlockResult(name, "converted", segment.block_bytes)
        return BlockResult(name, "existed")


def _is_fan_out(folder: str) -> bool:
    """Return True for the folders below `<space>/blocks`, which contain the segments."""
    return folder.count("/") == 2


def _unreadable(name: str, error: OSError) -> BlockResult:
    """Return the result for a file that cannot be read; raise `error` if the storage is silent."""
    if is_unreachable(error):
        raise error
    return BlockResult(name, "unreadable", reason=error.strerror or "")
