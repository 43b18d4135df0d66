"""Converts blocks of a foreign tree into segments of one block each.

A tree does not record which block follows which, so longer segments are not possible. Engines find
such blocks anyway, because they look for a block by its key if they know no segment with it.

Invariant: each published block was read completely, from files of the right length. Nothing else
can be verified, because a tree carries no checksums.
"""

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from kvtier.blocks.checksum import Checksum
from kvtier.blocks.key import UNKNOWN_PARENT, BlockKey, KeySpace
from kvtier.blocks.layout import BlockLayout
from kvtier.conversion.trees import GROUP_BYTES, FoundTree, share_done
from kvtier.conversion.work import BlockResult, ConversionJob, settled
from kvtier.errors import Corrupt, InvalidSettings
from kvtier.inspection.view import NotRegularFile, View, is_unreachable
from kvtier.tiers.base import Buffer
from kvtier.tiers.shared.format import encode_header, segment_name, space_folder
from kvtier.tiers.shared.reading import SegmentHeaders, aligned_buffer
from kvtier.tiers.shared.store import Store

_SAMPLED: Final = 64
"""Files whose length is compared before the conversion starts."""


class Importer:
    """Makes a job for each file of a tree. Jobs are safe from any thread."""

    def __init__(
        self,
        source: View,
        tree: FoundTree,
        space: KeySpace,
        checksum: Checksum,
        destination: View | None,
        store: Store | None,
    ) -> None:
        """Import to `store`, which `destination` shows; None: it does not exist yet.

        With `store` None, only names and lengths are read, and nothing is written.
        """
        self._source = source
        self._tree = tree
        self._store = store
        self._destination = destination
        self._space_folder = space_folder(space)
        self._block_bytes = space.block_bytes
        layout = BlockLayout(block_bytes=space.block_bytes, tokens_per_block=1)
        self._slot_bytes = layout.slot_bytes
        self._ranks = space.world_size if tree.is_by_worker else 1
        self._file_bytes = (
            space.block_bytes // self._ranks if tree.is_by_worker else layout.slot_bytes
        )
        digest = bytes.fromhex(space.digest)
        self._checksum = checksum
        self._headers = (
            None
            if store is None
            else SegmentHeaders(store, self._space_folder, checksum, digest, space.block_bytes)
        )

    def check_lengths(self) -> None:
        """Raise InvalidSettings if none of the first files has the length of a block."""
        sizes: set[int] = set()
        sampled = 0
        for entry, key in self._tree.walk(self._source, lambda _name, _error: None):
            if key is None or not entry.is_file:
                continue
            sizes.add(entry.stat.size)
            sampled += 1
            if sampled == _SAMPLED:
                break
        if sizes and self._file_bytes not in sizes:
            raise InvalidSettings(
                f"block_bytes: the tree's files have {', '.join(map(str, sorted(sizes)[:4]))} "
                f"bytes; with this key space's blocks of {self._block_bytes} bytes they would have "
                f"{self._file_bytes}"
            )

    def jobs(
        self, on_unreadable: Callable[[str, OSError], None]
    ) -> Iterator[tuple[float, ConversionJob]]:
        """Yield a job per file, with the share walked."""
        for entry, key in self._tree.walk(self._source, on_unreadable):
            name = entry.name
            if key is None or any(key[-GROUP_BYTES:]):
                yield share_done(name), settled(BlockResult(name, "unknown"))
            elif not entry.is_file:
                yield share_done(name), settled(BlockResult(name, "irregular"))
            else:
                yield share_done(name), self._job(name, key, entry.stat.size)

    def _job(self, name: str, key: BlockKey, size: int) -> ConversionJob:
        def run() -> BlockResult:
            if found := self._found(key):
                return BlockResult(name, found)
            if self._store is None or self._headers is None:
                return BlockResult(name, self._wrong_length(size) or "converted", self._block_bytes)
            return self._convert(name, key, self._store, self._headers)

        return run

    def _found(self, key: BlockKey) -> str | None:
        """Return the result if the block's segment exists already; quarantine a broken segment."""
        if self._destination is None:
            return None
        try:
            stat = self._destination.stat(f"{self._space_folder}/{segment_name(key)}")
        except NotRegularFile:
            return "occupied"
        if stat is None or (self._headers is not None and not _segment_exists(self._headers, key)):
            return None
        return "existed"

    def _convert(
        self, name: str, key: BlockKey, store: Store, headers: SegmentHeaders
    ) -> BlockResult:
        slot = aligned_buffer(self._slot_bytes)
        for rank in range(self._ranks):
            part = slot[rank * self._file_bytes :][: self._file_bytes]
            file = self._tree.block_name(key, rank)
            if kind := self._read(file, part):
                return BlockResult(file, kind)
        slot[self._block_bytes :] = 0  # padding
        check = self._checksum.block(key, slot[: self._block_bytes])
        segment = headers.segment([key], [check], UNKNOWN_PARENT)
        header = aligned_buffer(segment.header_bytes)
        header[:] = np.frombuffer(encode_header(segment, self._checksum), np.uint8)
        if store.publish(headers.name(key), [header, slot]):
            return BlockResult(name, "converted", self._block_bytes)
        return BlockResult(name, "existed" if _segment_exists(headers, key) else "occupied")

    def _read(self, name: str, part: Buffer) -> str | None:
        """Fill `part` with a whole file; return the kind of refusal, or None on success."""
        try:
            read = self._source.read_into(name, 0, [part])
        except NotRegularFile:
            return "irregular"
        except OSError as error:
            if is_unreachable(error):
                raise
            return "unreadable"
        if read is None:
            return "missing"
        if kind := self._wrong_length(read.stat.size):
            return kind
        return None if read.filled_bytes == len(part) else "short"

    def _wrong_length(self, size: int) -> str | None:
        if size == self._file_bytes:
            return None
        return "short" if size < self._file_bytes else "long"


def _segment_exists(headers: SegmentHeaders, key: BlockKey) -> bool:
    """Return True if the block's segment exists; a broken one is quarantined and does not count."""
    try:
        return headers.load(key) is not None
    except Corrupt:
        return False
