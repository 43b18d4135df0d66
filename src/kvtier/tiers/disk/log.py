"""The append log: which blocks entered and left which slots since the last checkpoint.

A frame is `length, check, body`; the check is seeded with the log's generation, so that a frame
of an earlier generation never passes. Reading stops at the first frame that is not whole, so
what is recovered is always a prefix of what happened.

Invariant: after `append` returns, the file ends with a whole frame. After it raised, the file
ends where it ended before, or nothing more is appended until that has been restored.
"""

import errno
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

import xxhash

from kvtier.blocks.key import BlockKey
from kvtier.tiers.disk.folder import LOG_NAME, DiskFolder, read_to_end

KEY_BYTES_MAX = 72
"""The longest key that the tier keeps: the capacity is divided by it."""
NO_PARENT = 255
_MAGIC = b"kvtlog1\n"
_HEADER = struct.Struct("<8sQQ")
HEADER_BYTES = _HEADER.size
_HEAD = struct.Struct("<IQ")
_PUT = struct.Struct("<BIBB16s")
_DEL = struct.Struct("<BI")
_PUT_TYPE, _DEL_TYPE = 1, 2
MAX_FRAME_BYTES = _HEAD.size + _PUT.size + 2 * KEY_BYTES_MAX


class Put(NamedTuple):
    """A record: `slot` holds block `key`, whose payload has this 16-byte checksum."""

    slot: int
    key: BlockKey
    parent: BlockKey | None
    checksum: bytes


class Delete(NamedTuple):
    """A record: `slot` is empty."""

    slot: int


Record = Put | Delete


class LogContent(NamedTuple):
    """The records of a log, and the length of its part that is whole."""

    generation: int
    records: list[Record]
    whole_bytes: int


def put_frame(put: Put, generation: int) -> bytes:
    """Encode a PUT frame."""
    key, parent = put.key, put.parent
    parent_bytes = NO_PARENT if parent is None else len(parent)
    body = _PUT.pack(_PUT_TYPE, put.slot, len(key), parent_bytes, put.checksum) + key
    if parent is not None:
        body += parent
    return _HEAD.pack(len(body), xxhash.xxh3_64_intdigest(body, generation)) + body


def delete_frame(slot: int, generation: int) -> bytes:
    """Encode a DEL frame."""
    body = _DEL.pack(_DEL_TYPE, slot)
    return _HEAD.pack(len(body), xxhash.xxh3_64_intdigest(body, generation)) + body


def decode(raw: bytes) -> LogContent | None:
    """Decode a log up to its first bad frame; return None if the header is not whole."""
    if len(raw) < HEADER_BYTES:
        return None
    magic, generation, check = _HEADER.unpack_from(raw)
    if magic != _MAGIC or check != _header_check(generation):
        return None
    records: list[Record] = []
    whole = HEADER_BYTES
    for record, end in _frames(raw, generation):
        records.append(record)
        whole = end
    return LogContent(generation, records, whole)


def _frames(raw: bytes, generation: int) -> Iterator[tuple[Record, int]]:
    at = HEADER_BYTES
    while at + _HEAD.size <= len(raw):
        length, check = _HEAD.unpack_from(raw, at)
        body = raw[at + _HEAD.size : at + _HEAD.size + length]
        at += _HEAD.size + length
        if len(body) != length or xxhash.xxh3_64_intdigest(body, generation) != check:
            return
        record = _decode_body(body)
        if record is None:
            return
        yield record, at


def _decode_body(body: bytes) -> Record | None:
    if len(body) == _DEL.size and body[0] == _DEL_TYPE:
        return Delete(_DEL.unpack(body)[1])
    if len(body) < _PUT.size or body[0] != _PUT_TYPE:
        return None
    _, slot, key_bytes, parent_bytes, checksum = _PUT.unpack_from(body)
    key_end = _PUT.size + key_bytes
    end = key_end + (0 if parent_bytes == NO_PARENT else parent_bytes)
    if end != len(body):
        return None
    parent = None if parent_bytes == NO_PARENT else BlockKey(body[key_end:])
    return Put(slot, BlockKey(body[_PUT.size : key_end]), parent, checksum)


def _header_check(generation: int) -> int:
    return xxhash.xxh3_64_intdigest(_MAGIC, generation)


class Log:
    """An open log file. Not thread-safe; methods raise OSError."""

    def __init__(self, folder: DiskFolder) -> None:
        self._files = folder.files
        self._fd = folder.open_file(LOG_NAME, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        self.size_bytes = self._files.stat_open(self._fd).st_size
        self._torn = False

    def read(self) -> bytes:
        """Read the whole file. Call it once, before the first append."""
        return read_to_end(self._files, self._fd)

    def cut(self, size_bytes: int) -> None:
        """Discard everything after the first `size_bytes`."""
        self.size_bytes = size_bytes
        self._torn = True
        self._restore()

    def restart(self, generation: int) -> None:
        """Empty the log and begin `generation`."""
        self.cut(0)
        self.append(_HEADER.pack(_MAGIC, generation, _header_check(generation)))

    def append(self, data: bytes) -> None:
        """Append whole frames in one write. Raises OSError and leaves no torn frame behind."""
        if self._torn:
            self._restore()
        try:
            written = self._files.write(self._fd, data)
            if written != len(data):
                raise OSError(errno.ENOSPC, f"{written} of {len(data)} bytes written to the log")
        except OSError:
            self._torn = True
            try:
                self._restore()
            except OSError:
                pass  # The next append restores the length first, or fails.
            raise
        self.size_bytes += written

    def _restore(self) -> None:
        self._files.truncate(self._fd, self.size_bytes)
        self._torn = False

    def sync(self) -> None:
        """Make the log durable."""
        self._files.sync_data(self._fd)

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        if self._fd >= 0:
            self._files.close(self._fd)
            self._fd = -1
