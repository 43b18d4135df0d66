"""The checkpoint: the whole index in one file, so that the log can start again from empty.

The rows are stored as columns, in sections, under one trailing checksum: writing or loading
costs about a microsecond a block. The file is replaced atomically; one that fails its checksum
counts as absent.
"""

import itertools
import struct
from collections.abc import Iterator
from typing import NamedTuple

import xxhash

from kvtier.blocks.key import BlockKey
from kvtier.tiers.disk.folder import CHECKPOINT_NAME, DiskFolder
from kvtier.tiers.disk.log import KEY_BYTES_MAX, NO_PARENT, Put
from kvtier.tiers.disk.slots import CHECKSUM_BYTES, SlotMap

MAX_ROW_BYTES = 4 + CHECKSUM_BYTES + 2 + 2 * KEY_BYTES_MAX
_MAGIC = b"kvtckp1\n"
_HEADER = struct.Struct("<8sQQ")
_COUNT = struct.Struct("<I")
_SECTION_ROWS = 1 << 16
_TRAILER_BYTES = 16


class Snapshot(NamedTuple):
    """The blocks of a checkpoint, oldest first, and the generation of the log that follows it."""

    generation: int
    puts: Iterator[Put]


def save(folder: DiskFolder, slots: SlotMap, generation: int) -> None:
    """Write the checkpoint durably. `slots` must not change meanwhile. Raises OSError."""
    folder.replace(CHECKPOINT_NAME, _with_trailer(_parts(slots, generation)))


def load(folder: DiskFolder) -> Snapshot | None:
    """Read the checkpoint; return None if none exists or it fails its checksum. Raises OSError."""
    raw = folder.read(CHECKPOINT_NAME)
    return None if raw is None else decode(raw)


def decode(raw: bytes) -> Snapshot | None:
    """Decode the bytes of a checkpoint; return None if they fail the checksum."""
    if len(raw) < _HEADER.size + _TRAILER_BYTES:
        return None
    body = memoryview(raw)[:-_TRAILER_BYTES]
    magic, generation, rows = _HEADER.unpack_from(body)
    if magic != _MAGIC or xxhash.xxh3_128_digest(body) != raw[-_TRAILER_BYTES:]:
        return None
    return Snapshot(generation, _sections(raw, rows))


def _sections(raw: bytes, rows: int) -> Iterator[Put]:
    at = _HEADER.size
    while rows:
        section, at = _section(raw, at)
        rows -= len(section)
        yield from section


def _with_trailer(parts: Iterator[bytes]) -> Iterator[bytes]:
    check = xxhash.xxh3_128()
    for part in parts:
        check.update(part)
        yield part
    yield check.digest()


def _parts(slots: SlotMap, generation: int) -> Iterator[bytes]:
    yield _HEADER.pack(_MAGIC, generation, len(slots))
    rows = iter(slots.slot_of.items())
    while section := list(itertools.islice(rows, _SECTION_ROWS)):
        keys = [key for key, _ in section]
        numbers = [slot for _, slot in section]
        parents = slots.parents(numbers)
        yield b"".join(
            (
                _COUNT.pack(len(section)),
                struct.pack(f"<{len(numbers)}I", *numbers),
                slots.checksums(numbers),
                bytes(map(len, keys)),
                bytes([NO_PARENT if parent is None else len(parent) for parent in parents]),
                b"".join(keys),
                b"".join([parent for parent in parents if parent is not None]),
            )
        )


def _section(raw: bytes, at: int) -> tuple[list[Put], int]:
    (count,) = _COUNT.unpack_from(raw, at)
    at += _COUNT.size
    slots = struct.unpack_from(f"<{count}I", raw, at)
    sums_at = at + 4 * count
    lengths_at = sums_at + CHECKSUM_BYTES * count
    key_bytes = raw[lengths_at : lengths_at + count]
    parent_bytes = raw[lengths_at + count : lengths_at + 2 * count]
    key_at = lengths_at + 2 * count
    parent_at = key_at + sum(key_bytes)
    puts = []
    for row, slot in enumerate(slots):
        key = BlockKey(raw[key_at : key_at + key_bytes[row]])
        key_at += key_bytes[row]
        parent = None
        if parent_bytes[row] != NO_PARENT:
            parent = BlockKey(raw[parent_at : parent_at + parent_bytes[row]])
            parent_at += parent_bytes[row]
        sum_at = sums_at + CHECKSUM_BYTES * row
        puts.append(Put(slot, key, parent, raw[sum_at : sum_at + CHECKSUM_BYTES]))
    return puts, parent_at
