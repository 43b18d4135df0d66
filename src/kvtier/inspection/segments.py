"""Verification of one segment: its header, its length and the checksum of every block.

Invariant: `verify` returns a Segment only if every block was read from one and the same file, and
matched the checksum in its verified header.
"""

import errno
import os
import struct
from typing import Final, NamedTuple

from kvtier.blocks.checksum import Checksum, HmacSha256, Xxh3
from kvtier.blocks.key import BlockKey
from kvtier.errors import Corrupt
from kvtier.inspection.view import NotRegularFile, View, is_unreachable
from kvtier.inspection.workers import Throttle
from kvtier.tiers.base import Buffer
from kvtier.tiers.shared.format import (
    PAGE_BYTES,
    VERSION,
    MoreNeeded,
    Segment,
    decode_header,
    header_bytes_for,
)
from kvtier.tiers.shared.manifest import SpaceManifest
from kvtier.tiers.shared.reading import aligned_buffer

_READ_BYTES: Final = 4 << 20
"""Size of one read, but at least one block."""
_SHOWN = 8
_START = struct.Struct("<8sI10xH")
"""Magic, version and checksum algorithm, as in docs/reference/format.md."""


class Rules(NamedTuple):
    """What every segment of a key space is verified against."""

    checksum: Checksum
    space_digest: bytes
    block_bytes: int


class BadSegment(NamedTuple):
    """What is wrong with a segment."""

    kind: str
    """A key of `report.PROBLEMS`."""
    reason: str
    """A message for the user."""


Verification = Segment | BadSegment | None
"""Outcome of a verification; None: the file was removed meanwhile, as engines and evictors do."""


def rules_of(manifest: SpaceManifest, checksum: Checksum) -> Rules:
    """Return the rules that a valid manifest implies."""
    space = manifest.space
    return Rules(checksum, bytes.fromhex(space.digest), space.block_bytes)


def blocks_in(file_bytes: int, key_bytes: int, block_bytes: int) -> int | None:
    """Return the number of blocks in a segment of `file_bytes`; None if no number fits."""
    slot_bytes = -(-block_bytes // PAGE_BYTES) * PAGE_BYTES
    count = (file_bytes - PAGE_BYTES) // slot_bytes
    while count > 0:
        total_bytes = header_bytes_for(count, key_bytes) + count * slot_bytes
        if total_bytes <= file_bytes:
            return count if total_bytes == file_bytes else None
        count -= 1
    return None


def read_header(view: View, name: str, rules: Rules, first: BlockKey | None) -> Segment | None:
    """Return the verified header; None if the file is gone. Raises Corrupt and OSError."""
    found = _header(view, name, rules, first)
    return None if found is None else found.segment


def read_block(view: View, name: str, segment: Segment, number: int, slot: Buffer) -> int | None:
    """Fill `slot` with block `number` and its padding. Raises OSError.

    Returns the number of bytes read; None if the file is gone.
    """
    read = view.read_into(name, segment.offset(number), [slot])
    return None if read is None else read.filled_bytes


def verify(
    view: View, name: str, rules: Rules, first: BlockKey | None, throttle: Throttle
) -> Verification:
    """Verify a whole segment. `first` is the key in its name; None accepts any key.

    Raises Stopped through `throttle`, and OSError if the storage does not answer. Uses 4 MiB of
    memory, or one block if that is more.
    """
    try:
        found = _header(view, name, rules, first)
        return None if found is None else _payloads(view, name, found, rules, throttle)
    except Corrupt as error:
        return BadSegment(_kind(view, name, rules), str(error))
    except NotRegularFile:
        return BadSegment("irregular", "not a regular file")
    except OSError as error:
        if is_unreachable(error):
            raise
        return BadSegment("unreadable", error.strerror or os.strerror(error.errno or errno.EIO))


def verify_twice(
    view: View, name: str, rules: Rules, first: BlockKey | None, throttle: Throttle
) -> Verification:
    """Verify a segment as `verify` does, and confirm a failure by a second verification."""
    try:
        once = verify(view, name, rules, first, throttle)
    except OSError:
        return verify(view, name, rules, first, throttle)
    if not isinstance(once, BadSegment):
        return once
    again = verify(view, name, rules, first, throttle)
    if isinstance(again, Segment):
        return BadSegment("unsteady", f"intact when read again; at first: {once.reason}")
    return again


class _Header(NamedTuple):
    segment: Segment
    version: str
    """Version of the file from which the header was read."""


def _header(view: View, name: str, rules: Rules, first: BlockKey | None) -> _Header | None:
    size = PAGE_BYTES
    while True:
        buffer = aligned_buffer(size)
        read = view.read_into(name, 0, [buffer])
        if read is None:
            return None
        try:
            segment = decode_header(
                memoryview(buffer[: read.filled_bytes]),  # type: ignore[arg-type]  # see tiers/disk
                checksum=rules.checksum,
                space_digest=rules.space_digest,
                block_bytes=rules.block_bytes,
                file_bytes=read.stat.size,
                first=first,
            )
        except MoreNeeded as more:
            if more.header_bytes <= size:
                raise Corrupt("the file ends within its header") from more
            size = more.header_bytes
        else:
            return _Header(segment, read.stat.version)


def _payloads(
    view: View, name: str, header: _Header, rules: Rules, throttle: Throttle
) -> Verification:
    segment = header.segment
    count, slot_bytes = len(segment.keys), segment.slot_bytes
    at_once = min(count, max(1, _READ_BYTES // slot_bytes))
    buffer = aligned_buffer(at_once * slot_bytes)
    wrong = []
    for start in range(0, count, at_once):
        wanted = buffer[: min(at_once, count - start) * slot_bytes]
        throttle.spend(len(wanted))
        read = view.read_into(name, segment.offset(start), [wanted])
        if read is None or read.stat.version != header.version:
            return None  # the file was replaced meanwhile
        if read.filled_bytes < len(wanted):
            return BadSegment("segment", f"the file ends in or after block {start} of {count}")
        for i in range(start, min(start + at_once, count)):
            payload = wanted[(i - start) * slot_bytes :][: segment.block_bytes]
            if rules.checksum.block(segment.keys[i], payload) != segment.checksums[i]:
                wrong.append(i)
    if not wrong:
        return segment
    shown = ", ".join(map(str, wrong[:_SHOWN])) + (", ..." if len(wrong) > _SHOWN else "")
    return BadSegment("checksum", f"blocks damaged: {shown} ({len(wrong)} of {count})")


def _kind(view: View, name: str, rules: Rules) -> str:
    """Return the kind of a header's problem: the header may be valid, but for other readers."""
    buffer = aligned_buffer(PAGE_BYTES)
    try:
        read = view.read_into(name, 0, [buffer])
    except OSError:
        return "segment"
    if read is None or read.filled_bytes < _START.size:
        return "segment"
    magic, version, algorithm = _START.unpack_from(memoryview(buffer))  # type: ignore[arg-type]
    if magic != b"KVTSEG\r\n":
        return "segment"
    if version > VERSION:
        return "newer"
    others = {Xxh3.algorithm, HmacSha256.algorithm} - {rules.checksum.algorithm}
    return "algorithm" if version == VERSION and algorithm in others else "segment"
