"""Access journals, and the summaries that they are folded into.

Readers write the names of the blocks that they read into journals; nothing else tells when a
block was last read. The time of the reads is that of the journal's file, by the store's clock.
The evictor that holds the lease `rest` folds journals into summaries and removes them, so that
recency outlives every evictor. All evictors read both.

A summary is little-endian: the magic bytes, u32 version, u32 sections; a section is u32
key_bytes, u32 count and that many of [key][f64 seconds of the store's clock][u8 number of
journals that name it]; then 16 bytes of xxh3-128 over everything before.

Invariants: journals are read before the summaries, so that a journal that is folded in between
is found in one or the other; a journal is removed only after all summaries that it changes are
stored; an owner writes under the epoch of its lease, so that a late write of a former owner
cannot overwrite a later summary; only valid names of segments are used; decoding a summary
returns what was encoded, or None, and allocates no more than the length of the file warrants.
"""

import errno
import logging
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import inf
from typing import Final, NamedTuple

import xxhash

from kvtier.evictor.layouts import StoreTree, key_of, shard_of
from kvtier.evictor.listing import files, read_small, with_prefix
from kvtier.evictor.table import Use
from kvtier.tiers.shared.store import Store

_log = logging.getLogger(__name__)

ENTRIES_MAX: Final = 1_000_000
"""Entries of a summary, at most; the hottest are kept."""
COUNT_MAX: Final = 255
"""The largest number of journals that an entry can count."""
KEPT_S: Final = 30 * 24 * 3600.0
"""Age from which a read is removed from the summaries; the block's file then tells its recency."""

_MAGIC = b"KVTUSE\r\n"
_HEADER = struct.Struct("<8sII")
_SECTION = struct.Struct("<II")
_VERSION = 1
_DIGEST_BYTES = 16
_JOURNAL_BYTES_MAX: Final = 32 << 20
_TRIES: Final = 5
_SUMMARY_BYTES_MAX: Final = ENTRIES_MAX * 80 + 4096

Uses = dict[bytes, Use]
"""Reads by the block's key."""


def summary_start(tree: str, shard: str) -> str:
    """Return the prefix of the names of a shard's summaries."""
    return f"{tree}/access/summary-{shard}."


def summary_name(tree: str, shard: str, epoch: int) -> str:
    """Return the name of the summary that the owner with this epoch writes."""
    return f"{summary_start(tree, shard)}{epoch:010d}.bin"


def encode_summary(uses: Mapping[bytes, Use], oldest_s: float) -> bytes:
    """Encode the uses since `oldest_s`, at most the hottest ENTRIES_MAX. Takes 1 us per entry."""
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


def decode_summary(raw: bytes) -> dict[bytes, Use] | None:
    """Decode a summary; return None if it is damaged, truncated, or of another version."""
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


class PackedKeys:
    """Keys in one byte string, each after its length. It takes a third of the memory of a list.

    While journals are folded, the keys of all of them are in memory at the same time.
    """

    __slots__ = ("_raw",)

    def __init__(self) -> None:
        self._raw = bytearray()

    def add(self, key: bytes) -> None:
        """Append a key of at most 255 bytes."""
        self._raw.append(len(key))
        self._raw += key

    def __iter__(self) -> Iterator[bytes]:
        at = 0
        while at < len(self._raw):
            end = at + 1 + self._raw[at]
            yield bytes(self._raw[at + 1 : end])
            at = end


class Journal(NamedTuple):
    """The content of one journal: the blocks that were read, by shard, and when."""

    reported_s: float
    """Time of the journal's file, by the store's clock."""
    keys: Mapping[str, PackedKeys]


class Journals(NamedTuple):
    """The journals of one tree that are not folded yet."""

    by_name: Mapping[str, Journal]

    @property
    def shards(self) -> set[str]:
        """The shards of all blocks in the journals."""
        return {shard for journal in self.by_name.values() for shard in journal.keys}

    def of(self, shard: str) -> Uses:
        """Return the uses of a shard's blocks, from all journals."""
        uses: Uses = {}
        for journal in self.by_name.values():
            use = Use(journal.reported_s, 1)
            for key in journal.keys.get(shard, ()):
                _add(uses, key, use)
        return uses


def read_journals(
    store: Store, tree: StoreTree, known: Journals | None = None, *, spared_s: float = -inf
) -> Journals:
    """Read the journals that are not folded yet. Raises OSError.

    Journals never change, so those in `known` are not read again. A journal that cannot be read
    is skipped if it is older than `spared_s`: it cannot report a read that would protect a block.
    Costs one listing, and three calls for each new journal.
    """
    by_name: dict[str, Journal] = {}
    if tree.is_foreign:
        return Journals(by_name)
    old = known.by_name if known else {}
    for found in files(store, f"{tree.name}/access"):
        if found.name in old:
            by_name[found.name] = old[found.name]
        elif found.name.endswith(".log"):
            try:
                journal = _read_journal(store, found.name)
            except OSError as error:
                if found.modified_s > spared_s:
                    raise
                _log.warning("%s cannot be read, its reads are lost: %s", found.name, error)
                continue
            if journal is not None:
                by_name[found.name] = journal
    return Journals(by_name)


def read_summaries(store: Store, tree: StoreTree, shard: str) -> tuple[list[str], Uses]:
    """Return the names of a shard's summaries, of all epochs, and their uses together.

    A damaged summary is ignored. If a summary vanishes meanwhile, its successor exists, and all
    are read again. Raises OSError.
    """
    if tree.is_foreign:
        return [], {}
    for _ in range(_TRIES):
        names = [found.name for found in with_prefix(store, summary_start(tree.name, shard))]
        uses: Uses = {}
        if all(_read_summary(store, name, uses) for name in names):
            return names, uses
    raise OSError(errno.EAGAIN, "the summaries keep changing", summary_start(tree.name, shard))


def read_uses(store: Store, tree: StoreTree, shard: str, journals: Journals) -> Uses:
    """Return the uses of a shard from its summaries and `journals`, which were read before."""
    _, uses = read_summaries(store, tree, shard)
    for key, use in journals.of(shard).items():
        _add(uses, key, use)
    return uses


def fold(
    store: Store,
    tree: StoreTree,
    journals: Journals,
    epoch: int,
    now_s: float,
    keep: Callable[[], None],
) -> None:
    """Fold `journals` into summaries of `epoch`, then remove the journals. Raises OSError.

    `keep` is called before each change and raises if the lease is lost.
    """
    for shard in sorted(journals.shards):
        older, uses = read_summaries(store, tree, shard)
        for key, use in journals.of(shard).items():
            _add(uses, key, use)
        own = summary_name(tree.name, shard, epoch)
        keep()
        store.put(own, encode_summary(uses, now_s - KEPT_S))
        for name in older:
            if name < own:
                keep()
                store.remove(name)
    for name in journals.by_name:
        keep()
        store.remove(name)


def _read_journal(store: Store, name: str) -> Journal | None:
    """Read one journal; return None if it is missing (folded, or removed) or too long."""
    read = read_small(store, name, _JOURNAL_BYTES_MAX)
    if read is None:
        return None
    raw, stat = read
    keys: dict[str, PackedKeys] = {}
    for line in raw.decode("ascii", "replace").splitlines():
        key = key_of(line)
        if key is not None:
            keys.setdefault(shard_of(key), PackedKeys()).add(key)
    return Journal(stat.modified_s, keys)


def _read_summary(store: Store, name: str, uses: Uses) -> bool:
    """Add the uses in a summary to `uses`; return False if the file is missing."""
    read = read_small(store, name, _SUMMARY_BYTES_MAX)
    if read is None:
        return store.stat(name) is not None
    found = decode_summary(read[0])
    if found is None:
        _log.warning("%s is damaged, its reads are lost", name)
        return True
    for key, use in found.items():
        known = uses.get(key)
        if known is None or known.last_s < use.last_s:
            uses[key] = use
    return True


def _add(uses: Uses, key: bytes, use: Use) -> None:
    known = uses.get(key)
    if known is None:
        uses[key] = use
    else:
        times = min(COUNT_MAX, known.times + use.times)
        uses[key] = Use(max(known.last_s, use.last_s), times)
