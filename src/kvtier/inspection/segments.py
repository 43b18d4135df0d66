"""Verifying one segment: its header, its length, every block's checksum.

Invariant: INTACT means that every byte that counts was read, from the file and not from what
was known before, and had the checksum that the verified header gives it.
"""

import errno
import os
import stat
import struct
from contextlib import suppress
from typing import Final, NamedTuple

from kvtier.blocks.checksum import Checksum
from kvtier.blocks.key import BlockKey
from kvtier.errors import Corrupt
from kvtier.inspection.folder import Folder
from kvtier.inspection.pace import Pace
from kvtier.tiers.shared.format import (
    PAGE_BYTES,
    VERSION,
    MoreNeeded,
    Segment,
    decode,
    header_bytes_for,
)
from kvtier.tiers.shared.handle import Handle
from kvtier.tiers.shared.headers import aligned_buffer
from kvtier.tiers.shared.manifest import Manifest

_READ_BYTES: Final = 4 << 20
"""Read at once, at most, but never less than a block."""
_SHOWN = 8
_START = struct.Struct("<8sI")
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE})


class Rules(NamedTuple):
    """What every segment of a key space must agree with."""

    checksum: Checksum
    space_digest: bytes
    block_bytes: int


class Broken(NamedTuple):
    """`kind`: segment, checksum, newer, irregular or unreadable. `reason` is for people."""

    kind: str
    reason: str


Verdict = Segment | Broken | None
"""None: the file vanished meanwhile, as files of a store do."""


def rules_of(manifest: Manifest, checksum: Checksum) -> Rules:
    """From a manifest that can be trusted."""
    space = manifest.space
    return Rules(checksum, bytes.fromhex(space.digest), space.block_bytes)


def blocks_in(file_bytes: int, key_bytes: int, block_bytes: int) -> int | None:
    """How many blocks make a file that long; None where none do. Reads nothing."""
    slot_bytes = -(-block_bytes // PAGE_BYTES) * PAGE_BYTES
    count = (file_bytes - PAGE_BYTES) // slot_bytes
    while count > 0:
        total_bytes = header_bytes_for(count, key_bytes) + count * slot_bytes
        if total_bytes <= file_bytes:
            return count if total_bytes == file_bytes else None
        count -= 1
    return None


def read_header(folder: Folder, name: str, rules: Rules, first: BlockKey | None) -> Segment | None:
    """The verified header; None where the file is gone. Raises Corrupt and OSError."""
    try:
        handle = folder.open(name)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
    try:
        return _header(handle, rules, first)
    finally:
        _close(handle)


def verify(folder: Folder, name: str, rules: Rules, first: BlockKey | None, pace: Pace) -> Verdict:
    """All of one file. `first`: the key that its name gives, None to take any.

    Raises `pace`'s Stopped and nothing else. Memory: 4 MiB, or one block where that is more.
    """
    try:
        handle = folder.open(name)
    except OSError as error:
        return _refused(error)
    try:
        segment = _header(handle, rules, first)
        return _payloads(handle, segment, rules, pace) or segment
    except Corrupt as error:
        kind = "newer" if _is_newer(handle) else "segment"
        return Broken(kind, str(error))
    except OSError as error:
        return _refused(error)
    finally:
        _close(handle)


def _header(handle: Handle, rules: Rules, first: BlockKey | None) -> Segment:
    status = handle.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    size = PAGE_BYTES
    while True:
        buffer = aligned_buffer(size)
        filled_bytes = handle.read(0, [buffer], min(size, status.st_size))
        try:
            return decode(
                memoryview(buffer[:filled_bytes]),  # type: ignore[arg-type]  # see tiers/disk
                checksum=rules.checksum,
                space_digest=rules.space_digest,
                block_bytes=rules.block_bytes,
                file_bytes=status.st_size,
                first=first,
            )
        except MoreNeeded as more:
            if more.header_bytes <= size:
                raise Corrupt("it ends within its header") from more
            size = more.header_bytes


def _payloads(handle: Handle, segment: Segment, rules: Rules, pace: Pace) -> Broken | None:
    count, slot_bytes = len(segment.keys), segment.slot_bytes
    at_once = min(count, max(1, _READ_BYTES // slot_bytes))
    buffer = aligned_buffer(at_once * slot_bytes)
    wrong = []
    for start in range(0, count, at_once):
        wanted = buffer[: min(at_once, count - start) * slot_bytes]
        pace.spend(len(wanted))
        if handle.read(segment.offset(start), [wanted], len(wanted)) < len(wanted):
            return Broken("segment", f"it ends within block {start} of {count}, or behind it")
        for i in range(start, min(start + at_once, count)):
            payload = wanted[(i - start) * slot_bytes :][: segment.block_bytes]
            if rules.checksum.block(segment.keys[i], payload) != segment.checksums[i]:
                wrong.append(i)
    if not wrong:
        return None
    shown = ", ".join(map(str, wrong[:_SHOWN])) + (", ..." if len(wrong) > _SHOWN else "")
    return Broken("checksum", f"blocks damaged: {shown} ({len(wrong)} of {count})")


def _close(handle: Handle) -> None:
    """What was read is read: an error that comes now says nothing of it."""
    with suppress(OSError):
        handle.close()


def _is_newer(handle: Handle) -> bool:
    buffer = aligned_buffer(PAGE_BYTES)
    try:
        if handle.read(0, [buffer], PAGE_BYTES) < _START.size:
            return False
    except OSError:
        return False
    magic, version = _START.unpack_from(memoryview(buffer))  # type: ignore[arg-type]
    return magic == b"KVTSEG\r\n" and int(version) > VERSION


def _refused(error: OSError) -> Broken | None:
    if error.errno in _GONE:
        return None
    if error.errno in (errno.ELOOP, errno.ENXIO, errno.EINVAL, errno.EISDIR):
        return Broken("irregular", "it is no regular file")
    return Broken("unreadable", error.strerror or os.strerror(error.errno or errno.EIO))
