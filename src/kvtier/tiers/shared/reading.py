"""Reading segments."""

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
from kvtier.tiers.shared.format import PAGE_BYTES, MoreNeeded, Segment, decode, segment_name
from kvtier.tiers.shared.store import Store


class BlockLocation(NamedTuple):
    """Block `number` of a segment."""

    segment: Segment
    number: int


class KnownSegments:
    """Segments and their blocks, at most `capacity_blocks` of them, the latest used last."""

    def __init__(self, capacity_blocks: int) -> None:
        self._capacity = capacity_blocks
        self._segments: OrderedDict[BlockKey, Segment] = OrderedDict()
        self._places: dict[BlockKey, BlockLocation] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Blocks known."""
        return len(self._places)

    def __contains__(self, key: BlockKey) -> bool:
        """Whether a segment is known that holds the block."""
        return key in self._places

    def place(self, key: BlockKey) -> BlockLocation | None:
        """Where the block lies; it counts as used."""
        with self._lock:
            place = self._places.get(key)
            if place is not None:
                self._segments.move_to_end(place.segment.keys[0])
            return place

    def add(self, segment: Segment) -> None:
        """Remember a segment, and forget the least recently used for it."""
        first = segment.keys[0]
        with self._lock:
            self._drop(first)
            self._segments[first] = segment
            for number, key in enumerate(segment.keys):
                # A block may lie in two segments: the first one known will do.
                self._places.setdefault(key, BlockLocation(segment, number))
            while len(self._places) > self._capacity and len(self._segments) > 1:
                self._drop(next(iter(self._segments)))

    def forget(self, first: BlockKey) -> None:
        """The segment is gone."""
        with self._lock:
            self._drop(first)

    def keys(self) -> list[BlockKey]:
        """Every block known, in no order that means anything."""
        with self._lock:
            return list(self._places)

    def _drop(self, first: BlockKey) -> None:
        segment = self._segments.pop(first, None)
        if segment is None:
            return
        for key in segment.keys:
            place = self._places.get(key)
            if place is not None and place.segment is segment:
                del self._places[key]


_log = logging.getLogger(__name__)

QUARANTINE_FILES: Final = 16
"""Kept for inspection in each key space; what fails beyond them is removed."""
_GUESS_BYTES: Final = PAGE_BYTES
"""Holds the header of some seventy blocks."""


def aligned_buffer(size: int) -> Buffer:
    """Memory that direct I/O takes: starts on a page, zeroed. `size` is a multiple of a page."""
    room = np.zeros(size + PAGE_BYTES, np.uint8)
    start = -room.ctypes.data % PAGE_BYTES
    return room[start : start + size]


class SegmentHeaders:
    """The headers below one folder of a key space. Safe from any thread; methods block.

    Every method that asks the store may raise OSError: it refused.
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
        """Files moved away or removed since the start."""

    def name(self, first: BlockKey) -> str:
        """Of a segment's file, below the store's root."""
        return f"{self._folder}/{segment_name(first)}"

    def load(self, first: BlockKey) -> Segment | None:
        """The segment that begins with `first`; None where there is none.

        Raises Corrupt where its file is broken; it is out of the way then.
        """
        try:
            return self._read(first, _GUESS_BYTES)
        except Corrupt as reason:
            self.quarantine(first, str(reason))
            raise

    def is_still(self, segment: Segment) -> bool:
        """Whether the file of `segment` still is what it was when its header was read."""
        return self.load(segment.keys[0]) == segment

    def segment(
        self, keys: Sequence[BlockKey], checksums: Sequence[bytes], parent: BlockKey | None
    ) -> Segment:
        """A new one of this key space."""
        return Segment(
            keys=tuple(keys),
            checksums=tuple(checksums),
            parent=parent,
            block_bytes=self.block_bytes,
            space_digest=self._space_digest,
            algorithm=self.checksum.algorithm,
        )

    def quarantine(self, first: BlockKey, reason: str) -> None:
        """Move a segment's file out of everybody's way."""
        name = self.name(first)
        kept = self._store.list(f"{self._folder}/quarantine", limit=QUARANTINE_FILES)
        to = f"{self._folder}/quarantine/{first.hex()}-{unique_id()[:8]}.kvt"
        if len(kept.entries) < QUARANTINE_FILES:
            moved, what = self._store.move(name, to), f"moved to {to}"
        else:
            moved, what = self._store.remove(name), "removed, the quarantine is full"
        if not moved:
            return  # another process was faster
        with self._lock:
            self.quarantined += 1
        _log.warning("shared tier: %s is corrupt (%s): %s", name, reason, what)

    def _read(self, first: BlockKey, size: int) -> Segment | None:
        buffer = aligned_buffer(size)
        read = self._store.read(self.name(first), 0, [buffer])
        if read is None:
            return None
        raw = memoryview(buffer[: read.filled_bytes])  # type: ignore[arg-type]  # see tiers/disk
        try:
            return decode(
                raw,
                checksum=self.checksum,
                space_digest=self._space_digest,
                block_bytes=self.block_bytes,
                file_bytes=read.stat.size,
                first=first,
            )
        except MoreNeeded as more:
            if more.header_bytes <= size:
                raise Corrupt("it ends within its header") from more
            return self._read(first, more.header_bytes)


_RUN_BYTES: Final = 1 << 20
"""One read moves at most about this much: it is verified while it lies in the processor's cache,
and while the reads of other threads keep the storage busy."""

Wanted = tuple[BlockLocation, int]
"""Where a block lies, and its position in the batch."""


class BlockReader:
    """Reads whole batches. Safe from any thread; raises nothing for a fault."""

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
        """Fill the buffers of `wanted` and say what became of each block."""
        for run in _runs(wanted):
            try:
                self._read_run(run, moves, outcomes)
                self._faults.works("read")
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
            self._known.forget(first)
            return  # MISSING: it was cleaned away
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
            self._judge(segment, wrong, outcomes)

    def _judge(self, segment: Segment, wrong: list[int], outcomes: list[Outcome]) -> None:
        """Damaged, or replaced by another segment of the same name meanwhile?"""
        first = segment.keys[0]
        self._known.forget(first)
        try:
            if not self._headers.is_still(segment):
                return
            self._headers.quarantine(first, f"{len(wrong)} blocks do not match their checksums")
        except Corrupt:
            pass  # its header does not hold either, and it is out of the way
        for i in wrong:
            outcomes[i] = Outcome.CORRUPT


def _runs(wanted: Sequence[Wanted]) -> Iterator[list[Wanted]]:
    """Cut into neighbours within a segment, in order, that one call may read."""
    run: list[Wanted] = []
    for each in sorted(wanted, key=lambda found: (found[0].segment.keys[0], found[0].number)):
        place = each[0]
        if run:
            last = run[-1][0]
            full = (len(run) + 1) * place.segment.slot_bytes > _RUN_BYTES
            if full or place.segment is not last.segment or place.number != last.number + 1:
                yield run
                run = []
        run.append(each)
    if run:
        yield run
