"""Blocks of kvtier's segments into a tree of vLLM's `fs` tier.

Invariant: what gets a name in the tree matched the checksum of a verified header in this run.
What vLLM reads later it cannot check again.
"""

from collections.abc import Callable, Iterator

from kvtier.conversion.trees import GROUP_BYTES, FoundTree, share_done
from kvtier.conversion.work import BlockResult, ConversionJob
from kvtier.errors import Corrupt
from kvtier.inspection.segments import Rules, read_block, read_header
from kvtier.inspection.view import Entry, NotRegularFile, View, is_unreachable
from kvtier.tiers.shared.format import Segment, parse_segment_name
from kvtier.tiers.shared.reading import aligned_buffer
from kvtier.tiers.shared.store import Store, is_temporary


class Exporter:
    """Makes a job of each block. Jobs are safe from any thread."""

    def __init__(
        self,
        source: View,
        space_folder: str,
        rules: Rules,
        tree: FoundTree,
        destination: View,
        store: Store | None,
    ) -> None:
        """`store` None: headers are read, and nothing is written."""
        self._source = source
        self._space_folder = space_folder
        self._rules = rules
        self._tree = tree
        self._destination = destination
        self._store = store

    def jobs(
        self, refused: Callable[[str, OSError], None]
    ) -> Iterator[tuple[float, ConversionJob]]:
        """One a block, in the order of the segments' names, and how far the walk is."""
        blocks = f"{self._space_folder}/blocks"
        for entry in self._source.walk(blocks, _is_fan_out, refused):
            share = share_done(entry.name.partition("/")[2])
            for job in self._segment(entry):
                yield share, job

    def _segment(self, entry: Entry) -> Iterator[ConversionJob]:
        name = entry.name
        first = parse_segment_name(name.partition("/")[2])
        if is_temporary(name.rpartition("/")[2]):
            return
        if first is None or not entry.is_file:
            yield _settled(BlockResult(name, "irregular" if first else "unknown"))
            return
        try:
            segment = read_header(self._source, name, self._rules, first)
        except Corrupt as error:
            yield _settled(BlockResult(name, "damaged", reason=str(error)))
            return
        except NotRegularFile:
            yield _settled(BlockResult(name, "irregular"))
            return
        except OSError as error:
            yield _settled(_unreadable(name, error))
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
        """What stands where a block should go."""
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
        slot[segment.block_bytes :] = 0  # nobody has verified what is behind a block
        if store.publish(self._tree.block_name(key), [slot]):
            return BlockResult(name, "converted", segment.block_bytes)
        return BlockResult(name, "existed")


def _is_fan_out(folder: str) -> bool:
    """Whether it is one of those below `<space>/blocks` that segments lie in."""
    return folder.count("/") == 2


def _unreadable(name: str, error: OSError) -> BlockResult:
    """Raises `error` where nobody answered: that says nothing of this file."""
    if is_unreachable(error):
        raise error
    return BlockResult(name, "unreadable", reason=error.strerror or "")


def _settled(result: BlockResult) -> ConversionJob:
    return lambda: result
