"""What readers told of their reads: journals, and the summaries that they are folded into.

Why: recency is real only if readers tell it. Each journal is as old as its file, by the store's
clock; one evictor at a time (who holds the lease `rest`) folds journals into the summaries and
removes them, so recency outlives every evictor. Everybody else reads both.

Invariants: journals are read before the summaries, so that a journal folded in between is in
one or the other; a journal is removed only after every summary that it changes has been put; an
owner writes under the epoch of its lease, so that what one sent and forgot, and which arrives
late, takes nothing away from its successors; only names that can be segments' are believed.
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

ENTRIES_MAX: Final = 1_000_000
"""The hottest are kept."""
COUNT_MAX: Final = 255
_MAGIC = b"KVTUSE\r\n"
_HEADER = struct.Struct("<8sII")
_SECTION = struct.Struct("<II")
_VERSION = 1
_DIGEST_BYTES = 16
_log = logging.getLogger(__name__)
KEPT_S: Final = 30 * 24 * 3600.0
"""A block that nobody read for so long is as old as its file again."""
_JOURNAL_BYTES_MAX: Final = 32 << 20
_TRIES: Final = 5
_SUMMARY_BYTES_MAX: Final = ENTRIES_MAX * 80 + 4096
Uses = dict[bytes, Use]


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


class PackedKeys:
    """Keys one behind the other, each after its length: a third of what a list of them takes.

    While journals are folded, all that many readers told in a while is in memory at once.
    """

    __slots__ = ("_raw",)

    def __init__(self) -> None:
        self._raw = bytearray()

    def add(self, key: bytes) -> None:
        """One more, of 255 bytes at most."""
        self._raw.append(len(key))
        self._raw += key

    def __iter__(self) -> Iterator[bytes]:
        at = 0
        while at < len(self._raw):
            end = at + 1 + self._raw[at]
            yield bytes(self._raw[at + 1 : end])
            at = end


class Journal(NamedTuple):
    """One file: which blocks were read, by shard, and when."""

    reported_s: float
    keys: Mapping[str, PackedKeys]


class Journals(NamedTuple):
    """Of one tree: the files that are not folded yet."""

    by_name: Mapping[str, Journal]

    @property
    def shards(self) -> set[str]:
        """Those of which anything is said."""
        return {shard for journal in self.by_name.values() for shard in journal.keys}

    def of(self, shard: str) -> Uses:
        """What all of them say of a shard."""
        uses: Uses = {}
        for journal in self.by_name.values():
            use = Use(journal.reported_s, 1)
            for key in journal.keys.get(shard, ()):
                _add(uses, key, use)
        return uses


def read_journals(
    store: Store, tree: StoreTree, known: Journals | None = None, *, spared_s: float = -inf
) -> Journals:
    """Everything that is not folded yet. Raises OSError.

    Journals never change: those in `known` are not read again. One that cannot be read, and was
    written before `spared_s`, is left out: it tells of no read after it, and what was read
    before makes a block no more than warm. One listing, and three calls a new journal.
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
                _log.warning("%s cannot be read, what it told is lost: %s", found.name, error)
                continue
            if journal is not None:
                by_name[found.name] = journal
    return Journals(by_name)


def read_summaries(store: Store, tree: StoreTree, shard: str) -> tuple[list[str], Uses]:
    """The files of a shard, of all epochs, and what they say together. Raises OSError.

    A damaged one says nothing. One that vanishes on the way has a successor: look again.
    """
    if tree.is_foreign:
        return [], {}
    for _ in range(_TRIES):
        names = [found.name for found in with_prefix(store, summary_start(tree.name, shard))]
        uses: Uses = {}
        if all(_read_summary(store, name, uses) for name in names):
            return names, uses
    raise OSError(errno.EAGAIN, "summaries come and go", summary_start(tree.name, shard))


def read_uses(store: Store, tree: StoreTree, shard: str, journals: Journals) -> Uses:
    """All that is known of a shard's reads. `journals` were read before this call."""
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
    """Put what `journals` say into the summaries of `epoch`, then remove them. Raises OSError.

    `keep` is called before each change, and raises where the lease is lost.
    """
    for shard in sorted(journals.shards):
        older, uses = read_summaries(store, tree, shard)
        for key, use in journals.of(shard).items():
            _add(uses, key, use)
        own = summary_name(tree.name, shard, epoch)
        keep()
        store.put(own, encode(uses, now_s - KEPT_S))
        for name in older:
            if name < own:
                keep()
                store.remove(name)
    for name in journals.by_name:
        keep()
        store.remove(name)


def _read_journal(store: Store, name: str) -> Journal | None:
    """None where it was folded by another evictor, removed by its writer, or is too long."""
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
    """Add what a summary says to `uses`; False where it is gone."""
    read = read_small(store, name, _SUMMARY_BYTES_MAX)
    if read is None:
        return store.stat(name) is not None
    found = decode(read[0])
    if found is None:
        _log.warning("%s is damaged: the reads it told of are forgotten", name)
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
