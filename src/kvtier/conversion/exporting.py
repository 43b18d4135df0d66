"""Blocks of kvtier's segments into a tree of vLLM's `fs` tier.

Invariant: what gets a name in the tree matched the checksum of a verified header in this run.
What vLLM reads later it cannot check again.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from kvtier.conversion.trees import GROUP_BYTES, FoundTree, share_done
from kvtier.conversion.work import Job, Result
from kvtier.errors import Corrupt
from kvtier.inspection.folder import Entry, Folder
from kvtier.inspection.segments import Rules, read_header
from kvtier.tiers.shared.format import Segment, parse_segment_name
from kvtier.tiers.shared.headers import aligned_buffer
from kvtier.tiers.shared.names import is_temporary
from kvtier.tiers.shared.store import Store


class Exporter:
    """Makes a job of each block. Jobs are safe from any thread."""

    def __init__(
        self,
        folder: Folder,
        space_folder: str,
        rules: Rules,
        tree: FoundTree,
        destination: Path,
        store: Store | None,
    ) -> None:
        """`store` None: headers are read, and nothing is written."""
        self._folder = folder
        self._space_folder = space_folder
        self._rules = rules
        self._tree = tree
        self._destination = destination
        self._store = store

    def jobs(self, refused: Callable[[str, OSError], None]) -> Iterator[tuple[float, Job]]:
        """One a block, in the order of the segments' names, and how far the walk is."""
        blocks = f"{self._space_folder}/blocks"
        for entry in self._folder.walk(blocks, lambda _name: True, refused):
            share = share_done(entry.name.partition("/")[2])
            for job in self._segment(entry):
                yield share, job

    def _segment(self, entry: Entry) -> Iterator[Job]:
        name = entry.name
        first = parse_segment_name(name.partition("/")[2])
        if is_temporary(name.rpartition("/")[2]):
            return
        if first is None or not entry.is_file:
            yield _settled(Result(name, "irregular" if first else "unknown"))
            return
        try:
            segment = read_header(self._folder, name, self._rules, first)
        except Corrupt as error:
            yield _settled(Result(name, "damaged", reason=str(error)))
            return
        except OSError as error:
            yield _settled(Result(name, "unreadable", reason=error.strerror or ""))
            return
        if segment is not None:
            for number in range(len(segment.keys)):
                yield self._job(name, segment, number)

    def _job(self, name: str, segment: Segment, number: int) -> Job:
        key = segment.keys[number]

        def run() -> Result:
            if any(key[-GROUP_BYTES:]):
                return Result(name, "unknown")
            target = self._tree.block_name(key)
            found = self._found(target, segment.slot_bytes)
            if found is not None:
                return Result(target, found)
            if self._store is None:
                return Result(name, "converted", segment.block_bytes)
            return self._convert(name, segment, number, self._store)

        return run

    def _found(self, target: str, file_bytes: int) -> str | None:
        """What stands where a block should go."""
        if self._store is None:
            path = self._destination / target
            size = path.stat().st_size if path.exists() else None
        else:
            found = self._store.stat(target)
            size = None if found is None else found.size
        if size is None:
            return None
        return "existed" if size == file_bytes else "occupied"

    def _convert(self, name: str, segment: Segment, number: int, store: Store) -> Result:
        key = segment.keys[number]
        slot = aligned_buffer(segment.slot_bytes)
        try:
            handle = self._folder.open(name)
        except FileNotFoundError:
            return Result(name, "missing")
        except OSError as error:
            return Result(name, "unreadable", reason=error.strerror or "")
        try:
            filled_bytes = handle.read(segment.offset(number), [slot], len(slot))
        except OSError as error:
            return Result(name, "unreadable", reason=error.strerror or "")
        finally:
            with suppress(OSError):
                handle.close()
        payload = slot[: segment.block_bytes]
        is_whole = filled_bytes == len(slot)
        if not is_whole or self._rules.checksum.block(key, payload) != segment.checksums[number]:
            return Result(name, "damaged", reason=f"block {number} differs from its checksum")
        if store.publish(self._tree.block_name(key), [slot]):
            return Result(name, "converted", segment.block_bytes)
        return Result(name, "existed")


def _settled(result: Result) -> Job:
    return lambda: result
