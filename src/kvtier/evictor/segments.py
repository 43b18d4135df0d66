"""Reading the headers of a tree's segments, as its manifest says they are verified.

Why: an evictor knows files by their names, and a name tells the first block only. Who checks
headers, and who announces what left, needs the rest. Costs a read of a page for each file.
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
    """Of one tree whose manifest is sound. Every method may raise OSError: the store refused."""

    def __init__(self, store: Store, space: KeySpace, headers: SegmentHeaders) -> None:
        self._store = store
        self._digest = bytes.fromhex(space.digest)
        self._headers = headers
        self.space = space

    def read(self, key: bytes, name: str) -> Segment | None:
        """What the file `name` holds, which begins with `key`; None where it is gone.

        Raises Corrupt with the reason; nothing is moved aside.
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
        """Move a segment aside."""
        self._headers.quarantine(BlockKey(key), reason)


def open_segment_reader(
    store: Store, tree: StoreTree, key_file: Path | None
) -> SegmentReader | None:
    """None where the headers of a tree cannot be verified; says why in the log.

    It is another system's, has no sound manifest, or needs another secret than `key_file`.
    Raises OSError.
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
        _log.warning("headers of %s are not read: %s", tree.name, error)
        return None
    if manifest_of(manifest.space, checksum).witness != manifest.witness:
        _log.warning("headers of %s are not read: they need another --key-file", tree.name)
        return None
    space = manifest.space
    digest = bytes.fromhex(space.digest)
    return SegmentReader(
        store, space, SegmentHeaders(store, tree.name, checksum, digest, space.block_bytes)
    )
