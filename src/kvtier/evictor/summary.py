"""When blocks of one shard were last read: what access journals are folded into.

Layout, little-endian: the magic bytes, u32 version, u32 sections; a section is u32 key_bytes, u32
count and that many of [key][f64 seconds of the store's clock][u8 journals that named it]; then
16 bytes xxh3-128 of all before. Invariant: `decode` returns what `encode` got, or None; nothing
is allocated by a count that the length of the file does not bear out.
"""

import struct
from collections.abc import Iterable, Mapping
from typing import Final

import xxhash

from kvtier.evictor.table import Use

ENTRIES_MAX: Final = 1_000_000
"""The hottest are kept."""
COUNT_MAX: Final = 255

_MAGIC = b"KVTUSE\r\n"
_HEADER = struct.Struct("<8sII")
_SECTION = struct.Struct("<II")
_VERSION = 1
_DIGEST_BYTES = 16


def summary_start(tree: str, shard: str) -> str:
    """What the names of a shard's summaries begin with."""
    return f"{tree}/access/summary-{shard}."


def summary_name(tree: str, shard: str, epoch: int) -> str:
    """Of the summary that the owner of this epoch writes, below the store's root."""
    return f"{summary_start(tree, shard)}{epoch:010d}.bin"


def encode(uses: Mapping[bytes, Use], oldest_s: float) -> bytes:
    """All that were used since `oldest_s`, the hottest ENTRIES_MAX of them. 1 us each."""
    kept: Iterable[tuple[bytes, Use]] = (
        (key, use) for key, use in uses.items() if use.last_s >= oldest_s
    )
    if len(uses) > ENTRIES_MAX:
        kept = sorted(kept, key=lambda item: -item[1].last_s)[:ENTRIES_MAX]
    sections: dict[int, list[bytes]] = {}
    for key, use in kept:
        entry = key + struct.pack("<dB", use.last_s, min(use.times, COUNT_MAX))
        sections.setdefault(len(key), []).append(entry)
    parts = [_HEADER.pack(_MAGIC, _VERSION, len(sections))]
    for key_bytes, entries in sorted(sections.items()):
        parts += [_SECTION.pack(key_bytes, len(entries)), *entries]
    body = b"".join(parts)
    return body + xxhash.xxh3_128_digest(body)


def decode(raw: bytes) -> dict[bytes, Use] | None:
    """None where `raw` is damaged, cut short, or of another version."""
    body = memoryview(raw)[:-_DIGEST_BYTES]
    if len(raw) < _HEADER.size + _DIGEST_BYTES:
        return None
    if xxhash.xxh3_128_digest(body) != raw[-_DIGEST_BYTES:]:
        return None
    magic, version, sections = _HEADER.unpack_from(body)
    if (magic, version) != (_MAGIC, _VERSION):
        return None
    uses: dict[bytes, Use] = {}
    at = _HEADER.size
    for _ in range(sections):
        if len(body) < at + _SECTION.size:
            return None
        key_bytes, count = _SECTION.unpack_from(body, at)
        at += _SECTION.size
        entry = struct.Struct(f"<{min(key_bytes, len(body))}sdB")
        end = at + count * entry.size
        if end > len(body):
            return None
        for key, last_s, times in entry.iter_unpack(body[at:end]):
            uses[key] = Use(last_s, times)
        at = end
    return uses
