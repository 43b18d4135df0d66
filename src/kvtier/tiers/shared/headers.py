"""Reading the headers of segments, and moving away what is not one.

Invariant: what is returned was verified against key space, lengths and checksum; a file that
fails is quarantined, so that nobody else trips over it, or removed where the quarantine is full.
"""

import logging
import threading
from collections.abc import Sequence
from typing import Final

import numpy as np

from kvtier.blocks.checksum import Checksum
from kvtier.blocks.key import BlockKey
from kvtier.clock import unique_id
from kvtier.errors import Corrupt
from kvtier.tiers.base import Buffer
from kvtier.tiers.shared.format import PAGE_BYTES, MoreNeeded, Segment, decode, segment_name
from kvtier.tiers.shared.store import Store

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


class Headers:
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
