"""The most-read prefixes of a key space, from access journals and evictors' summaries.

A journal names each segment that a process has read in about ten seconds once. Such a mention is
what counts as a read here, in a journal or folded into a summary. A chain continues from a segment
to its most-read successor as long as that is read at least half as often as the chain's first
segment; other successors start chains of their own. So a system prompt that all requests share is
one chain, instead of a part of every request's chain.

Journals and headers are read by several threads, because in a bucket each file costs a request or
two, and a store without an evictor has hundreds of journals per engine.

Invariant: journals are read before summaries, so a journal that is folded meanwhile is counted
once or twice, and never lost.
"""

import errno
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from heapq import nlargest
from itertools import pairwise
from typing import Final

from kvtier.blocks.key import BlockKey, KeySpace
from kvtier.errors import Corrupt
from kvtier.evictor.journals import ENTRIES_MAX, decode_summary, summary_start
from kvtier.evictor.layouts import SHARDS
from kvtier.evictor.table import Use
from kvtier.inspection.segments import Rules, read_header
from kvtier.inspection.survey import Chain
from kvtier.inspection.view import Entry, View, is_unreachable
from kvtier.inspection.workers import Throttle, Workers
from kvtier.tiers.shared.format import (
    KEY_BYTES_MAX,
    KEY_BYTES_MIN,
    Segment,
    parse_segment_name,
    segment_name,
)

Uses = dict[bytes, Use]
OnUnreadable = Callable[[str, OSError], None]
_SUMMARY_BYTES_MAX: Final = ENTRIES_MAX * 80 + 4096
_TRIES: Final = 3
"""Attempts to read the summaries of a shard, which an evictor may replace meanwhile."""
HEADERS_MAX: Final = 4096
"""Most headers that are read, of the most-read segments."""
SEGMENTS_MAX: Final = 1_000_000
"""Most segments that are counted; further ones in journals are ignored."""
Load = Callable[[Sequence[BlockKey]], Iterable[Segment | None]]
"""Returns the verified headers of the segments with these first keys, in order; None: no header."""
_GROUP_BYTES = 4
JOURNAL_BYTES_MAX: Final = 16 << 20
_THREADS: Final = 8


class ReadHistory:
    """The reads of one key space, read from a view."""

    def __init__(
        self,
        view: View,
        space: str,
        on_unreadable: OnUnreadable,
        on_file: Callable[[str], None],
    ) -> None:
        """Read below the folder `space`.

        `on_unreadable` is called for files that cannot be read, `on_file` for every file.
        """
        self._view = view
        self._space = space
        self._on_unreadable = on_unreadable
        self._on_file = on_file

    def chains(
        self, journals: Sequence[Entry], rules: Rules, space: KeySpace, count: int
    ) -> list[Chain]:
        """Return the `count` most-read chains. Raises OSError if the storage does not answer."""
        reads = ReadCounts()
        for entry, content in self._contents(journals):
            reads.add(content, entry.stat.modified_s)
        for uses in folded_reads(self._view, self._space, self._on_unreadable):
            reads.add_folded(uses)
        return reads.chains(partial(self._headers, rules), space, count)

    def _contents(self, journals: Sequence[Entry]) -> Iterator[tuple[Entry, bytes]]:
        works = (partial(self._view.read, entry.name, JOURNAL_BYTES_MAX) for entry in journals)
        with Workers(_THREADS, "kvtier-inspect", Throttle()) as workers:
            for entry, future in zip(journals, workers.begin(works), strict=True):
                self._on_file(entry.name)
                try:
                    content = workers.result(future)
                except OSError as error:
                    if is_unreachable(error):
                        raise
                    self._on_unreadable(entry.name, error)
                    continue
                if content is not None:
                    yield entry, content

    def _headers(self, rules: Rules, firsts: Sequence[BlockKey]) -> Iterator[Segment | None]:
        """Yield the headers of segments; None for those that are gone or unreadable.

        Broken segments are reported by `kvtier fsck`.
        """
        names = [f"{self._space}/{segment_name(first)}" for first in firsts]
        works = (
            partial(read_header, self._view, name, rules, first)
            for name, first in zip(names, firsts, strict=True)
        )
        with Workers(_THREADS, "kvtier-inspect", Throttle()) as workers:
            for name, future in zip(names, workers.begin(works), strict=True):
                self._on_file(name)
                try:
                    yield workers.result(future)
                except Corrupt:
                    yield None
                except OSError as error:
                    if is_unreachable(error):
                        raise
                    yield None


class ReadCounts:
    """Counts of reads per segment, with about 400 bytes per segment."""

    def __init__(self) -> None:
        self._counts: Counter[BlockKey] = Counter()
        self._last_s: dict[BlockKey, float] = {}

    def add(self, journal: bytes, modified_s: float) -> None:
        """Count the lines of one journal, except those that name no segment."""
        for line in journal.decode("utf-8", "replace").splitlines():
            key = parse_segment_name(line)
            if key is not None and (key in self._counts or len(self._counts) < SEGMENTS_MAX):
                self._count(key, 1, modified_s)

    def add_folded(self, uses: Mapping[bytes, Use]) -> None:
        """Add the summary of one shard, but only its HEADERS_MAX most-read segments.

        All journals have to be added before, as their reads are part of that choice.
        """

        def reads(item: tuple[bytes, Use]) -> int:
            return item[1].times + self._counts.get(BlockKey(item[0]), 0)

        for key, use in nlargest(HEADERS_MAX, uses.items(), key=reads):
            if KEY_BYTES_MIN <= len(key) <= KEY_BYTES_MAX:
                self._count(BlockKey(key), use.times, use.last_s)

    def chains(self, load: Load, space: KeySpace, count: int) -> list[Chain]:
        """Return the `count` most-read chains, with headers from `load`."""
        firsts = [first for first, _ in self._counts.most_common(HEADERS_MAX if count else 0)]
        loaded = {
            first: segment
            for first, segment in zip(firsts, load(firsts), strict=True)
            if segment is not None
        }
        chains = [self._chain(links, space) for links in self._links(loaded)]
        chains.sort(key=lambda chain: (-chain.reads, -chain.blocks, chain.first_key))
        return chains[:count]

    def _count(self, key: BlockKey, times: int, last_s: float) -> None:
        self._counts[key] += times
        self._last_s[key] = max(last_s, self._last_s.get(key, last_s))

    def _links(self, loaded: dict[BlockKey, Segment]) -> Iterator[list[Segment]]:
        """Yield each loaded segment in exactly one chain; segments in a cycle are left out."""
        owners: dict[BlockKey, BlockKey] = {}
        for first, segment in loaded.items():
            for key in segment.keys:
                owners.setdefault(key, first)
        followers: dict[BlockKey, list[Segment]] = {}
        starts = []
        for segment in loaded.values():
            owner = owners.get(segment.parent) if segment.parent is not None else None
            if owner is None:
                starts.append(segment)
            else:
                followers.setdefault(owner, []).append(segment)
        while starts:
            links = [starts.pop()]
            reads = self._counts[links[0].keys[0]]
            while following := followers.get(links[-1].keys[0]):
                following.sort(key=lambda segment: -self._counts[segment.keys[0]])
                starts += following[1:]
                if 2 * self._counts[following[0].keys[0]] < reads:
                    starts.append(following[0])
                    break
                links.append(following[0])
            yield links

    def _chain(self, links: list[Segment], space: KeySpace) -> Chain:
        first = links[0].keys[0]
        blocks = len(links[-1].keys)
        for link, follower in pairwise(links):
            # Two writers may have split the chain differently; blocks in both count once.
            blocks += link.keys.index(follower.parent) + 1 if follower.parent else 0
        group = int.from_bytes(first[-_GROUP_BYTES:], "big")
        tokens = None
        if group < len(space.groups):
            tokens = blocks * space.groups[group].tokens_per_block * space.blocks_per_chunk
        parent = links[0].parent
        return Chain(
            first_key=first.hex(),
            parent=None if parent is None else parent.hex(),
            reads=self._counts[first],
            last_read_s=self._last_s[first],
            segments=len(links),
            blocks=blocks,
            tokens=tokens,
        )


def folded_reads(view: View, space: str, on_unreadable: OnUnreadable) -> Iterator[Uses]:
    """Yield, shard by shard, which segments were read, how often and when last.

    Of two summaries of one shard the later entry of a segment counts, as it does for evictors.
    Unreadable and damaged summaries are passed to `on_unreadable`. Raises OSError if the storage
    does not answer. Holds one shard in memory, about 250 bytes per segment.
    """
    listed = _names(view, space, on_unreadable)
    for shard in SHARDS:
        start = summary_start(space, shard)
        for _ in range(_TRIES):
            uses = _merged(view, [name for name in listed if name.startswith(start)], on_unreadable)
            if uses is not None:
                yield uses
                break
            listed = _names(view, space, on_unreadable)  # an evictor has replaced a summary


def _names(view: View, space: str, on_unreadable: OnUnreadable) -> list[str]:
    entries = view.walk(f"{space}/access", lambda _folder: False, on_unreadable)
    start = f"{space}/access/summary-"
    return [entry.name for entry in entries if entry.is_file and entry.name.startswith(start)]


def _merged(view: View, names: list[str], on_unreadable: OnUnreadable) -> Uses | None:
    """Merge the summaries `names`; return None if one of them is gone."""
    uses: Uses = {}
    for name in names:
        try:
            raw = view.read(name, _SUMMARY_BYTES_MAX)
        except OSError as error:
            if is_unreachable(error):
                raise
            on_unreadable(name, error)
            continue
        if raw is None:
            return None
        found = decode_summary(raw)
        if found is None:
            on_unreadable(name, OSError(errno.EBADMSG, "damaged: the reads in it are lost"))
            continue
        for key, use in found.items():
            known = uses.get(key)
            if known is None or known.last_s < use.last_s:
                uses[key] = use
    return uses
