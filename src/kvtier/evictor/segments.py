"""Reading the headers of a tree's segments, verified as its manifest says.

A file's name tells only the first block of its segment. Header checks and events need the other
blocks, which costs a read of at least a page per file.
"""

import logging
from pathlib import Path
from typing import Final

from kvtier.blocks.checksum import checksum_for
from kvtier.blocks.key import BlockKey, KeySpace
from kvtier.errors import Corrupt, InvalidSettings
from kvtier.evictor.layouts import StoreTree
from kvtier.evictor.listing import read_small
from kvtier.tiers.files import MANIFEST_NAME
from kvtier.tiers.shared.format import PAGE_BYTES, MoreNeeded, Segment, decode_header
from kvtier.tiers.shared.manifest import manifest_of, parse_manifest
from kvtier.tiers.shared.reading import SegmentHeaders, aligned_buffer
from kvtier.tiers.shared.store import Store

_log = logging.getLogger(__name__)

MANIFEST_BYTES_MAX: Final = 1 << 20


class SegmentReader:
    """A reader of the segment headers of one tree.

    Every method raises OSError if the store refuses a call.
    """

    def __init__(self, store: Store, space: KeySpace, headers: SegmentHeaders) -> None:
        self._store = store
        self._digest = bytes.fromhex(space.digest)
        self._headers = headers
        self.space = space

    def read(self, key: bytes, name: str) -> Segment | None:
        """Return the header of the file `name`, whose first block is `key`; None if it is missing.

        Raises Corrupt with the reason; the file stays where it is.
        """
        size = PAGE_BYTES
        while True:
            buffer = aligned_buffer(size)
            read = self._store.read(name, 0, [buffer])
            if read is None:
                return None
            try:
                return decode_header(
                    buffer[: read.filled_bytes].tobytes(),
                    checksum=self._headers.checksum,
                    space_digest=self._digest,
                    block_bytes=self.space.block_bytes,
                    file_bytes=read.stat.size,
                    first=BlockKey(key),
                )
            except MoreNeeded as more:
                if more.header_bytes <= size:
                    raise Corrupt("the file ends within its header") from more
                size = more.header_bytes

    def quarantine(self, key: bytes, reason: str) -> None:
        """Move the segment that begins with `key` to quarantine."""
        self._headers.quarantine(BlockKey(key), reason)


def open_segment_reader(
    store: Store, tree: StoreTree, key_file: Path | None
) -> SegmentReader | None:
    """Return a reader for `tree`, or None if its headers cannot be verified.

    That is so for other systems' trees, without a valid manifest, and with another secret than
    in `key_file`; the latter two are logged. Raises OSError.
    """
    if tree.is_foreign:
        return None
    read = read_small(store, f"{tree.name}/{MANIFEST_NAME}", MANIFEST_BYTES_MAX)
    if read is None:
        return None
    try:
        manifest = parse_manifest(read[0])
        checksum = checksum_for(key_file)
    except InvalidSettings as error:
        _log.warning("the headers of %s are not read: %s", tree.name, error)
        return None
    if manifest_of(manifest.space, checksum).witness != manifest.witness:
        _log.warning("the headers of %s are not read: they need another --key-file", tree.name)
        return None
    space = manifest.space
    digest = bytes.fromhex(space.digest)
    return SegmentReader(
        store, space, SegmentHeaders(store, tree.name, checksum, digest, space.block_bytes)
    )
