"""Reading segments: their headers, their blocks, and the index of what this process has seen.

A segment becomes known by writing it or by reading its header. The index is bounded, and it may be
out of date because other processes clean the store: a read finds out.

Invariants: a header is returned only after it was verified against key space, lengths and checksum.
A block is DONE only if the bytes in the caller's buffer have the checksum that the verified header
gives for its key. A file that fails verification is moved to the quarantine, so that no other
reader meets it, or removed if the quarantine is full.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from kvtier.blocks.checksum import Checksum
from kvtier.blocks.key import BlockKey
from kvtier.clock import unique_id
from kvtier.errors import Corrupt
from kvtier.tiers.base import BlockMove, Buffer, Outcome
from kvtier.tiers.faults import FaultLog
from kvtier.tiers.shared.format import PAGE_BYTES, MoreNeeded, Segment, decode_header, segment_name
from kvtier.tiers.shared.store import Store

_log = logging.getLogger(__name__)

QUARANTINE_FILES: Final = 16
"""The most files kept in the quarantine of a key space; further broken files are removed."""
_GUESS_BYTES: Final = PAGE_BYTES
"""The size of the first read; it holds a header of about seventy blocks."""
_RUN_BYTES: Final = 1 << 20
"""About the most that one read moves: it is verified while it lies in the processor's cache, and
while the reads of other threads keep the storage busy."""


class BlockLocation(NamedTuple):
    """Where a block lies: it is block `number` of the segment."""

    segment: Segment
    number: int


class KnownSegments:
    """The segments that this process knows, and where each block lies.

    At most `capacity_blocks` blocks, in LRU order of their segments. Safe from any thread; never
    blocks for long.
    """

    def __init__(self, capacity_blocks: int) -> None:
        self._capacity = capacity_blocks
        self._segments: OrderedDict[BlockKey, Segment] = OrderedDict()
        self._locations: dict[BlockKey, BlockLocation] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of known blocks."""
        return len(self._locations)

    def __contains__(self, key: BlockKey) -> bool:
        """Return whether a known segment holds the block."""
        return key in self._locations

    def locate(self, key: BlockKey) -> BlockLocation | None:
        """Return where the block lies and mark its segment as used; None if it is unknown."""
        with self._lock:
            location = self._locations.get(key)
            if location is not None:
                self._segments.move_to_end(location.segment.keys[0])
            return location

    def add(self, segment: Segment) -> None:
        """Add a segment, and remove the least recently used ones to make room."""
        first = segment.keys[0]
        with self._lock:
            self._remove(first)
            self._segments[first] = segment
            for number, key in enumerate(segment.keys):
                # A block may lie in two segments; the one that was known first is kept.
                self._locations.setdefault(key, BlockLocation(segment, number))
            while len(self._locations) > self._capacity and len(self._segments) > 1:
                self._remove(next(iter(self._segments)))

    def remove(self, first: BlockKey) -> None:
        """Remove the segment that begins with `first`."""
        with self._lock:
            self._remove(first)

    def keys(self) -> list[BlockKey]:
        """Return all known blocks, in no particular order."""
        with self._lock:
            return list(self._locations)

    def _remove(self, first: BlockKey) -> None:
        segment = self._segments.pop(first, None)
        if segment is None:
            return
        for key in segment.keys:
            location = self._locations.get(key)
            if location is not None and location.segment is segment:
                del self._locations[key]


def aligned_buffer(size: int) -> Buffer:
    """Return zeroed memory that suits direct I/O; `size` is a multiple of PAGE_BYTES."""
    room = np.zeros(size + PAGE_BYTES, np.uint8)
    start = -room.ctypes.data % PAGE_BYTES
    return room[start : start + size]


class SegmentHeaders:
    """The segment headers below the folder of one key space.

    Safe from any thread. Methods that ask the store block, and raise OSError where it refuses.
    """

    def __init__(
        self,
        store: Store,
        folder: str,
        checksum: Checksum,
        space_digest: bytes,
        block_bytes: int,
    ) -> None:
        self._store = store
        self._folder = folder
        self.checksum = checksum
        self._space_digest = space_digest
        self.block_bytes = block_bytes
        self._lock = threading.Lock()
        self.quarantined = 0
        """The number of files that were quarantined or removed since the start."""

    def name(self, first: BlockKey) -> str:
        """Return the name in the store of the segment that begins with `first`."""
        return f"{self._folder}/{segment_name(first)}"

    def load(self, first: BlockKey) -> Segment | None:
        """Return the segment that begins with `first`; None where there is none.

        Raises Corrupt where the file is broken, after moving it out of the way.
        """
        try:
            return self._read(first, _GUESS_BYTES)
        except Corrupt as reason:
            self.quarantine(first, str(reason))
            raise

    def is_still(self, segment: Segment) -> bool:
        """Return whether the file of `segment` still has the same header."""
        return self.load(segment.keys[0]) == segment

    def segment(
        self, keys: Sequence[BlockKey], checksums: Sequence[bytes], parent: BlockKey | None
    ) -> Segment:
        """Return a new segment of this key space."""
        return Segment(
            keys=tuple(keys),
            checksums=tuple(checksums),
            parent=parent,
            block_bytes=self.block_bytes,
            space_digest=self._space_digest,
            algorithm=self.checksum.algorithm,
        )

    def quarantine(self, first: BlockKey, reason: str) -> None:
        """Move a broken segment to the quarantine, or remove it if the quarantine is full."""
        name = self.name(first)
        kept = self._store.list(f"{self._folder}/quarantine", limit=QUARANTINE_FILES)
        to = f"{self._folder}/quarantine/{first.hex()}-{unique_id()[:8]}.kvt"
        if len(kept.entries) < QUARANTINE_FILES:
            moved, what = self._store.move(name, to), f"moved to {to}"
        else:
            moved, what = self._store.remove(name), "removed because the quarantine is full"
        if not moved:
            return  # another process did it first
        with self._lock:
            self.quarantined += 1
        _log.warning("shared tier: %s is corrupt (%s): %s", name, reason, what)

    def _read(self, first: BlockKey, size: int) -> Segment | None:
        buffer = aligned_buffer(size)
        read = self._store.read(self.name(first), 0, [buffer])
        if read is None:
            return None
        raw = memoryview(buffer[: read.filled_bytes])  # type: ignore[arg-type]  # as in tiers/files.py
        try:
            return decode_header(
                raw,
                checksum=self.checksum,
                space_digest=self._space_digest,
                block_bytes=self.block_bytes,
                file_bytes=read.stat.size,
                first=first,
            )
        except MoreNeeded as more:
            if more.header_bytes <= size:
                raise Corrupt("the file ends within its header") from more
            return self._read(first, more.header_bytes)


Wanted = tuple[BlockLocation, int]
"""The location of a block, and its position in the batch."""


class BlockReader:
    """A reader of whole batches. Safe from any thread; raises nothing for a fault."""

    def __init__(
        self, store: Store, headers: SegmentHeaders, known: KnownSegments, faults: FaultLog
    ) -> None:
        self._store = store
        self._headers = headers
        self._known = known
        self._faults = faults

    def read(
        self, wanted: Sequence[Wanted], moves: Sequence[BlockMove], outcomes: list[Outcome]
    ) -> None:
        """Fill the buffers of `wanted` and set the outcome of each block."""
        for run in _runs(wanted):
            try:
                self._read_run(run, moves, outcomes)
                self._faults.succeeded("read")
            except OSError as error:
                self._faults.report("read", error)
                for _, i in run:
                    outcomes[i] = Outcome.FAILED

    def _read_run(
        self, run: list[Wanted], moves: Sequence[BlockMove], outcomes: list[Outcome]
    ) -> None:
        (segment, number), _ = run[0]
        first, block_bytes = segment.keys[0], segment.block_bytes
        buffers = [moves[i].buffer for _, i in run]
        read = self._store.read(self._headers.name(first), segment.offset(number), buffers)
        if read is None:
            self._known.remove(first)
            return  # the outcome stays MISSING: the segment was cleaned away
        is_whole = read.stat.size == segment.total_bytes
        block = self._headers.checksum.block
        wrong: list[int] = []
        for (_, number), i in run:
            key, buffer = moves[i]
            if is_whole and block(key, buffer[:block_bytes]) == segment.checksums[number]:
                outcomes[i] = Outcome.DONE
            else:
                wrong.append(i)
        if wrong:
            self._handle_mismatch(segment, wrong, outcomes)

    def _handle_mismatch(self, segment: Segment, wrong: list[int], outcomes: list[Outcome]) -> None:
        """Find out whether blocks are damaged or the file was replaced; set CORRUPT if damaged."""
        first = segment.keys[0]
        self._known.remove(first)
        try:
            if not self._headers.is_still(segment):
                return
            self._headers.quarantine(first, f"{len(wrong)} blocks do not match their checksums")
        except Corrupt:
            pass  # the header is broken as well, and the file is out of the way
        for i in wrong:
            outcomes[i] = Outcome.CORRUPT


def _runs(wanted: Sequence[Wanted]) -> Iterator[list[Wanted]]:
    """Yield runs of neighbors within one segment, in order, each for one read."""
    run: list[Wanted] = []
    for each in sorted(wanted, key=lambda found: (found[0].segment.keys[0], found[0].number)):
        location = each[0]
        if run:
            last = run[-1][0]
            full = (len(run) + 1) * location.segment.slot_bytes > _RUN_BYTES
            if full or location.segment is not last.segment or location.number != last.number + 1:
                yield run
                run = []
        run.append(each)
    if run:
        yield run
