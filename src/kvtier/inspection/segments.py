"""Verifying one segment: its header, its length, every block's checksum.

Invariant: a verdict that is a segment means that every byte that counts was read, from one and the
same file and not from what was known before, and had the checksum that its verified header gives.
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
"""Read at once, at most, but never less than a block."""
_SHOWN = 8
_START = struct.Struct("<8sI10xH")
"""Magic, version, and the checksum algorithm: see docs/reference/format.md."""


class Rules(NamedTuple):
    """What every segment of a key space must agree with."""

    checksum: Checksum
    space_digest: bytes
    block_bytes: int


class BadSegment(NamedTuple):
    """`kind`: one of `report.PROBLEMS`. `reason` is for people."""

    kind: str
    reason: str


Verification = Segment | BadSegment | None
"""None: the file vanished meanwhile, as files of a store do."""


def rules_of(manifest: SpaceManifest, checksum: Checksum) -> Rules:
    """From a manifest that can be trusted."""
    space = manifest.space
    return Rules(checksum, bytes.fromhex(space.digest), space.block_bytes)


def blocks_in(file_bytes: int, key_bytes: int, block_bytes: int) -> int | None:
    """How many blocks make a file that long; None where none do. ReadCounts nothing."""
    slot_bytes = -(-block_bytes // PAGE_BYTES) * PAGE_BYTES
    count = (file_bytes - PAGE_BYTES) // slot_bytes
    while count > 0:
        total_bytes = header_bytes_for(count, key_bytes) + count * slot_bytes
        if total_bytes <= file_bytes:
            return count if total_bytes == file_bytes else None
        count -= 1
    return None


def read_header(view: View, name: str, rules: Rules, first: BlockKey | None) -> Segment | None:
    """The verified header; None where the file is gone. Raises Corrupt and OSError."""
    found = _header(view, name, rules, first)
    return None if found is None else found.segment


def read_block(view: View, name: str, segment: Segment, number: int, slot: Buffer) -> int | None:
    """Fill `slot` with a block and what is behind it; bytes read, None where the file is gone.

    Raises OSError.
    """
    read = view.read_into(name, segment.offset(number), [slot])
    return None if read is None else read.filled_bytes


def verify(
    view: View, name: str, rules: Rules, first: BlockKey | None, pace: Throttle
) -> Verification:
    """All of one file. `first`: the key that its name gives, None to take any.

    Raises `pace`'s Stopped, and OSError where nobody answers. Memory: 4 MiB, or one block where
    that is more.
    """
    try:
        found = _header(view, name, rules, first)
        return None if found is None else _payloads(view, name, found, rules, pace)
    except Corrupt as error:
        return BadSegment(_kind(view, name, rules), str(error))
    except NotRegularFile:
        return BadSegment("irregular", "it is no regular file")
    except OSError as error:
        if is_unreachable(error):
            raise
        return BadSegment("unreadable", error.strerror or os.strerror(error.errno or errno.EIO))


def verify_twice(
    view: View, name: str, rules: Rules, first: BlockKey | None, pace: Throttle
) -> Verification:
    """As `verify`; a bad verdict is taken from a second look only."""
    try:
        once = verify(view, name, rules, first, pace)
    except OSError:
        return verify(view, name, rules, first, pace)
    if not isinstance(once, BadSegment):
        return once
    again = verify(view, name, rules, first, pace)
    if isinstance(again, Segment):
        return BadSegment("unsteady", f"sound when it was read again; before: {once.reason}")
    return again


class _Header(NamedTuple):
    segment: Segment
    version: str
    """Of the file that it was read from."""


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


def _payloads(view: View, name: str, header: _Header, rules: Rules, pace: Throttle) -> Verification:
    segment = header.segment
    count, slot_bytes = len(segment.keys), segment.slot_bytes
    at_once = min(count, max(1, _READ_BYTES // slot_bytes))
    buffer = aligned_buffer(at_once * slot_bytes)
    wrong = []
    for start in range(0, count, at_once):
        wanted = buffer[: min(at_once, count - start) * slot_bytes]
        pace.spend(len(wanted))
        read = view.read_into(name, segment.offset(start), [wanted])
        if read is None or read.stat.version != header.version:
            return None  # another file has the name by now
        if read.filled_bytes < len(wanted):
            return BadSegment("segment", f"it ends within block {start} of {count}, or behind it")
        for i in range(start, min(start + at_once, count)):
            payload = wanted[(i - start) * slot_bytes :][: segment.block_bytes]
            if rules.checksum.block(segment.keys[i], payload) != segment.checksums[i]:
                wrong.append(i)
    if not wrong:
        return segment
    shown = ", ".join(map(str, wrong[:_SHOWN])) + (", ..." if len(wrong) > _SHOWN else "")
    return BadSegment("checksum", f"blocks damaged: {shown} ({len(wrong)} of {count})")


def _kind(view: View, name: str, rules: Rules) -> str:
    """What is wrong with a header: it may be sound, and only not for this reader."""
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
