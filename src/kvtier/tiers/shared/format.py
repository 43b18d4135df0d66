"""The segment file: the header of 1 to 65,535 consecutive blocks of a prefix chain, and names.

Readers on other hosts have nothing but the folder, so every file describes itself;
docs/reference/format.md is the contract. Everything that is read here is untrusted until its
checksum is verified: no memory is allocated by a count that the length of the file does not
confirm.

Invariants: a header has exactly one encoding, so a change of any byte, padding included, is
detected; `decode_header` returns what `encode_header` was given, or raises Corrupt or MoreNeeded
and nothing else.
"""

import hmac
import re
import struct
from typing import Final, NamedTuple

import msgspec

from kvtier.blocks.checksum import CHECKSUM_BYTES, Checksum
from kvtier.blocks.key import UNKNOWN_PARENT, BlockKey, KeySpace
from kvtier.errors import Corrupt

VERSION: Final = 1
PAGE_BYTES: Final = 4096
"""The unit of headers and slots. It is part of the format and does not depend on the machine."""
BLOCKS_MAX: Final = 65_535
KEY_BYTES_MIN: Final = 5
KEY_BYTES_MAX: Final = 64

_MAGIC = b"KVTSEG\r\n"
_MAGIC_AND_VERSION = struct.Struct("<8sI")
_FIXED = struct.Struct("<8sIIIHHQQ32sB7s64s")
_NO_PARENT, _PARENT_UNKNOWN = 0, 255
_NAME = re.compile(r"blocks/[0-9a-f]{3}/((?:[0-9a-f]{2})+)\.kvt")
_SLUG_CHARACTERS = 40


class _Fixed(NamedTuple):
    """The fields of `_FIXED` in their order in the file."""

    magic: bytes
    version: int
    header_bytes: int
    block_count: int
    key_bytes: int
    algorithm: int
    block_bytes: int
    slot_bytes: int
    space_digest: bytes
    parent_bytes: int
    zeros: bytes
    parent: bytes


class MoreNeeded(Exception):
    """The header is longer than what was read: read `header_bytes` from the start and retry."""

    def __init__(self, header_bytes: int) -> None:
        """`header_bytes` is at most 5.3 MB, whatever the file says, and within its length."""
        super().__init__(f"the header is {header_bytes} bytes long")
        self.header_bytes = header_bytes


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a segment's header. Lengths that follow from others are properties."""

    keys: tuple[BlockKey, ...]
    """The blocks in the order of the chain: all of one length, no duplicates.

    The first one names the file.
    """
    checksums: tuple[bytes, ...]
    """`Checksum.block` of each block."""
    parent: BlockKey | None
    """The block before the first one; None where the prefix begins here, or UNKNOWN_PARENT."""
    block_bytes: int
    space_digest: bytes
    """The 32 bytes of `KeySpace.digest`."""
    algorithm: int
    """The algorithm of every checksum in the file."""

    @property
    def header_bytes(self) -> int:
        """The length of the header, where the payload of the first block begins."""
        return header_bytes_for(len(self.keys), len(self.keys[0]))

    @property
    def slot_bytes(self) -> int:
        """The distance from the start of one payload to the next."""
        return _paged(self.block_bytes)

    @property
    def total_bytes(self) -> int:
        """The exact length of the file."""
        return self.offset(len(self.keys))

    def offset(self, i: int) -> int:
        """Return where the payload of `keys[i]` begins."""
        return self.header_bytes + i * self.slot_bytes


def encode_header(segment: Segment, checksum: Checksum) -> bytes:
    """Return the header, padded to `segment.header_bytes`.

    Raises ValueError for an invalid segment, which is a mistake of the caller.
    """
    if mistake := _mistake(segment, checksum):
        raise ValueError(mistake)
    parts = [_FIXED.pack(*_fixed(segment))]
    for key, check in zip(segment.keys, segment.checksums, strict=True):
        parts += key, check
    body = b"".join(parts)
    return (body + checksum.header(body)).ljust(segment.header_bytes, b"\0")


def decode_header(
    raw: bytes | bytearray | memoryview,
    *,
    checksum: Checksum,
    space_digest: bytes,
    block_bytes: int,
    file_bytes: int,
    first: BlockKey | None = None,
) -> Segment:
    """Parse the header at the start of `raw` and verify it against what the reader expects.

    `file_bytes` is the length of the whole file, `first` the key in its name (None: any). Costs
    5 us, and for more than about ten blocks 0.1 to 0.3 us a block. Raises Corrupt with the reason,
    and MoreNeeded where `raw` is valid so far but ends before the header does.
    """
    view = memoryview(raw)
    _check_magic(view, file_bytes)
    if len(view) < _FIXED.size:
        raise MoreNeeded(PAGE_BYTES)
    fixed = _Fixed._make(_FIXED.unpack_from(view))
    if fixed.algorithm != checksum.algorithm:
        raise Corrupt(_other_algorithm(fixed.algorithm, checksum.algorithm))
    if fixed.space_digest != space_digest:
        found, expected = fixed.space_digest.hex(), space_digest.hex()
        raise Corrupt(f"of another key space: {found[:16]}, not {expected[:16]}")
    slot_bytes = _paged(block_bytes)
    if (fixed.block_bytes, fixed.slot_bytes) != (block_bytes, slot_bytes):
        raise Corrupt(
            f"blocks of {fixed.block_bytes} bytes in slots of {fixed.slot_bytes}; this key space "
            f"has {block_bytes} in {slot_bytes}"
        )
    _check_lengths(fixed, file_bytes)
    if len(view) < fixed.header_bytes:
        raise MoreNeeded(fixed.header_bytes)
    segment = _verified(view[: fixed.header_bytes], fixed, checksum)
    if first is not None and segment.keys[0] != first:
        raise Corrupt(f"holds {segment.keys[0].hex()} first, but is named {first.hex()}")
    return segment


def header_bytes_for(block_count: int, key_bytes: int) -> int:
    """Return the length of the header of `block_count` blocks."""
    return _paged(_body_bytes(block_count, key_bytes) + CHECKSUM_BYTES)


def segment_name(key: BlockKey) -> str:
    """Return the name of the segment that begins with `key`, below the key space's folder."""
    name = key.hex()
    return f"blocks/{name[:3]}/{name}.kvt"


def parse_segment_name(name: str) -> BlockKey | None:
    """Return the key in a name that `segment_name` made; None for any other name."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    key = BlockKey(bytes.fromhex(found[1]))
    fits = KEY_BYTES_MIN <= len(key) <= KEY_BYTES_MAX and segment_name(key) == name
    return key if fits else None


def space_folder(space: KeySpace) -> str:
    """Return the folder name of a key space: the readable model name and a part of the digest."""
    slug = re.sub(r"[^A-Za-z0-9._-]", "-", space.model).lstrip(".-")[:_SLUG_CHARACTERS]
    return f"{slug or 'model'}-{space.digest[:16]}"


def _fixed(segment: Segment) -> _Fixed:
    parent = segment.parent
    if parent is None:
        parent_bytes = _NO_PARENT
    else:
        parent_bytes = len(parent) or _PARENT_UNKNOWN
    return _Fixed(
        magic=_MAGIC,
        version=VERSION,
        header_bytes=segment.header_bytes,
        block_count=len(segment.keys),
        key_bytes=len(segment.keys[0]),
        algorithm=segment.algorithm,
        block_bytes=segment.block_bytes,
        slot_bytes=segment.slot_bytes,
        space_digest=segment.space_digest,
        parent_bytes=parent_bytes,
        zeros=bytes(7),
        parent=(parent or b"").ljust(KEY_BYTES_MAX, b"\0"),
    )


def _verified(view: memoryview, fixed: _Fixed, checksum: Checksum) -> Segment:
    """Verify and parse all that follows the lengths. `view` is exactly the header."""
    end = _body_bytes(fixed.block_count, fixed.key_bytes)
    padding = end + CHECKSUM_BYTES
    if not hmac.compare_digest(checksum.header(view[:end]), bytes(view[end:padding])):
        secret = "" if checksum.algorithm == 1 else ", or written with another key_file"
        raise Corrupt(f"the header's checksum differs: damaged{secret}")
    if bytes(view[padding:]) != bytes(len(view) - padding):
        raise Corrupt("bytes after the header's checksum are not zero")
    entry = struct.Struct(f"{fixed.key_bytes}s{CHECKSUM_BYTES}s")
    keys, checksums = zip(*entry.iter_unpack(view[_FIXED.size : end]), strict=True)
    segment = Segment(
        keys=keys,
        checksums=checksums,
        parent=_parent(fixed),
        block_bytes=fixed.block_bytes,
        space_digest=fixed.space_digest,
        algorithm=fixed.algorithm,
    )
    if mistake := _mistake(segment, checksum):
        raise Corrupt(mistake)
    if _fixed(segment) != fixed:
        raise Corrupt("the parent's length is invalid, or bytes that must be zero are not")
    return segment


def _parent(fixed: _Fixed) -> BlockKey | None:
    if fixed.parent_bytes == _NO_PARENT:
        return None
    if fixed.parent_bytes == _PARENT_UNKNOWN:
        return UNKNOWN_PARENT
    return BlockKey(fixed.parent[: fixed.parent_bytes])


def _mistake(segment: Segment, checksum: Checksum) -> str | None:
    """Return what is invalid in a segment; None if it is valid."""
    keys, parent = segment.keys, segment.parent
    if not 1 <= len(keys) <= BLOCKS_MAX:
        return f"{len(keys)} blocks; a segment has 1 to {BLOCKS_MAX}"
    if not KEY_BYTES_MIN <= len(keys[0]) <= KEY_BYTES_MAX:
        return f"keys of {len(keys[0])} bytes; a key has {KEY_BYTES_MIN} to {KEY_BYTES_MAX}"
    lengths = {len(key) for key in keys} | ({len(parent)} if parent else set())
    if len(lengths) > 1:
        return f"keys of different lengths: {sorted(lengths)}"
    if len({*keys, parent}) <= len(keys):
        return "a key occurs twice in the chain"
    if {len(check) for check in segment.checksums} != {CHECKSUM_BYTES}:
        return f"a checksum is not {CHECKSUM_BYTES} bytes"
    if len(segment.checksums) != len(keys):
        return f"{len(segment.checksums)} checksums for {len(keys)} keys"
    if segment.algorithm != checksum.algorithm:
        return _other_algorithm(segment.algorithm, checksum.algorithm)
    if segment.block_bytes < 1 or len(segment.space_digest) != 32:
        return f"{segment.block_bytes} bytes a block, digest of {len(segment.space_digest)}"
    return None


def _check_magic(view: memoryview, file_bytes: int) -> None:
    if file_bytes < PAGE_BYTES:
        raise Corrupt(f"{file_bytes} bytes are fewer than any header has")
    if len(view) < _MAGIC_AND_VERSION.size:
        raise MoreNeeded(PAGE_BYTES)
    magic, version = _MAGIC_AND_VERSION.unpack_from(view)
    if magic != _MAGIC:
        raise Corrupt(f"begins with {magic!r}, unlike a segment")
    if version > VERSION:
        raise Corrupt(f"version {version}, of a newer kvtier; this one reads {VERSION}")
    if version != VERSION:
        raise Corrupt(f"version {version}, which does not exist; this kvtier reads {VERSION}")


def _check_lengths(fixed: _Fixed, file_bytes: int) -> None:
    """Check the lengths against each other and the file's own length, before any is trusted."""
    count, key_bytes = fixed.block_count, fixed.key_bytes
    if not 1 <= count <= BLOCKS_MAX:
        raise Corrupt(f"{count} blocks; a segment has 1 to {BLOCKS_MAX}")
    if not KEY_BYTES_MIN <= key_bytes <= KEY_BYTES_MAX:
        raise Corrupt(f"keys of {key_bytes} bytes; a key has {KEY_BYTES_MIN} to {KEY_BYTES_MAX}")
    right = header_bytes_for(count, key_bytes)
    if fixed.header_bytes != right:
        raise Corrupt(f"a header of {fixed.header_bytes} bytes; {count} blocks need {right}")
    total = right + count * fixed.slot_bytes
    if file_bytes != total:
        side = "short" if file_bytes < total else "long"
        raise Corrupt(f"too {side}: {file_bytes} bytes, its {count} blocks make {total}")


def _other_algorithm(found: int, expected: int) -> str:
    known = {1: "without a secret", 2: "with a secret (key_file)"}
    how = known.get(found, f"with checksum algorithm {found}, which this kvtier does not know")
    return f"written {how}; this reader expects one {known[expected]}"


def _body_bytes(block_count: int, key_bytes: int) -> int:
    return _FIXED.size + block_count * (key_bytes + CHECKSUM_BYTES)


def _paged(count: int) -> int:
    """Return `count` rounded up to whole pages."""
    return -(-count // PAGE_BYTES) * PAGE_BYTES
