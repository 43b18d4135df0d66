"""The prefixes that are read most, from what readers wrote into their access journals.

A journal names each segment once that a process read in some ten seconds: a read here is such
a mention, whether it stands in a journal still or was folded into an evictor's summary. A chain
goes on from a segment to the one that follows it and is read most, as long as that is read half
as often as the chain's first; what else follows begins chains of its own. So a system prompt
that all requests share is one chain, and not a part of each request's.
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


Refused = Callable[[str, OSError], None]


_BYTES_MAX: Final = ENTRIES_MAX * 80 + 4096


_TRIES: Final = 3


def folded_reads(view: View, space: str, refused: Refused) -> Iterator[Uses]:
    """Of one shard after the other: which segments were read, how often and when last.

    What cannot be read, or is damaged, is told to `refused`; where nobody answers this raises
    OSError. Memory: one shard, some 250 bytes a segment.
    """
    listed = _names(view, space, refused)
    for shard in SHARDS:
        start = summary_start(space, shard)
        for _ in range(_TRIES):
            uses = _merged(view, [name for name in listed if name.startswith(start)], refused)
            if uses is not None:
                yield uses
                break
            listed = _names(view, space, refused)  # folded anew: there is a successor


def _names(view: View, space: str, refused: Refused) -> list[str]:
    entries = view.walk(f"{space}/access", lambda _folder: False, refused)
    start = f"{space}/access/summary-"
    return [entry.name for entry in entries if entry.is_file and entry.name.startswith(start)]


def _merged(view: View, names: list[str], refused: Refused) -> Uses | None:
    """What all of them say; None where one is gone."""
    uses: Uses = {}
    for name in names:
        try:
            raw = view.read(name, _BYTES_MAX)
        except OSError as error:
            if is_unreachable(error):
                raise
            refused(name, error)
            continue
        if raw is None:
            return None
        found = decode_summary(raw)
        if found is None:
            refused(name, OSError(errno.EBADMSG, "damaged: the reads that it told of are lost"))
            continue
        for key, use in found.items():
            known = uses.get(key)
            if known is None or known.last_s < use.last_s:
                uses[key] = use
    return uses


HEADERS_MAX: Final = 4096
"""Headers read at most, of the segments read most."""


SEGMENTS_MAX: Final = 1_000_000
"""Counted at most: what journals name beyond them is passed over."""


Load = Callable[[Sequence[BlockKey]], Iterable[Segment | None]]
"""Verified headers of the segments with these first keys, in their order; None: there is none."""


_GROUP_BYTES = 4


class ReadCounts:
    """Mentions of segments, counted: some 400 bytes a segment."""

    def __init__(self) -> None:
        self._counts: Counter[BlockKey] = Counter()
        self._last_s: dict[BlockKey, float] = {}

    def add(self, journal: bytes, modified_s: float) -> None:
        """One journal; lines that name no segment are passed over."""
        for line in journal.decode("utf-8", "replace").splitlines():
            key = parse_segment_name(line)
            if key is not None and (key in self._counts or len(self._counts) < SEGMENTS_MAX):
                self._note(key, 1, modified_s)

    def add_folded(self, uses: Mapping[bytes, Use]) -> None:
        """Of one shard, once all journals are in: of more than HEADERS_MAX those read most."""

        def reads(item: tuple[bytes, Use]) -> int:
            return item[1].times + self._counts.get(BlockKey(item[0]), 0)

        for key, use in nlargest(HEADERS_MAX, uses.items(), key=reads):
            if KEY_BYTES_MIN <= len(key) <= KEY_BYTES_MAX:
                self._note(BlockKey(key), use.times, use.last_s)

    def chains(self, load: Load, space: KeySpace, count: int) -> list[Chain]:
        """The `count` that are read most."""
        firsts = [first for first, _ in self._counts.most_common(HEADERS_MAX if count else 0)]
        loaded = {
            first: segment
            for first, segment in zip(firsts, load(firsts), strict=True)
            if segment is not None
        }
        chains = [self._chain(links, space) for links in self._links(loaded)]
        chains.sort(key=lambda chain: (-chain.reads, -chain.blocks, chain.first_key))
        return chains[:count]

    def _note(self, key: BlockKey, times: int, last_s: float) -> None:
        self._counts[key] += times
        self._last_s[key] = max(last_s, self._last_s.get(key, last_s))

    def _links(self, loaded: dict[BlockKey, Segment]) -> Iterator[list[Segment]]:
        """Every loaded segment in one run; none of those that follow each other in a ring."""
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
            # Two writers may have cut the chain differently: what both hold counts once.
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


JOURNAL_BYTES_MAX: Final = 16 << 20


_THREADS: Final = 8


class ReadHistory:
    """Of one key space. Every method raises OSError where the store does not answer."""

    def __init__(
        self,
        view: View,
        space: str,
        refused: Callable[[str, OSError], None],
        tell: Callable[[str], None],
    ) -> None:
        """`space`: its folder. `refused` hears what cannot be read, `tell` each file's name."""
        self._view = view
        self._space = space
        self._refused = refused
        self._tell = tell

    def chains(
        self, journals: Sequence[Entry], rules: Rules, space: KeySpace, count: int
    ) -> list[Chain]:
        """The `count` that are read most."""
        reads = ReadCounts()
        for entry, content in self._contents(journals):
            reads.add(content, entry.stat.modified_s)
        for uses in folded_reads(self._view, self._space, self._refused):
            reads.add_folded(uses)
        return reads.chains(partial(self._headers, rules), space, count)

    def _contents(self, journals: Sequence[Entry]) -> Iterator[tuple[Entry, bytes]]:
        works = (partial(self._view.read, entry.name, JOURNAL_BYTES_MAX) for entry in journals)
        with Workers(_THREADS, "kvtier-inspect", Throttle()) as workers:
            for entry, future in zip(journals, workers.begin(works), strict=True):
                self._tell(entry.name)
                try:
                    content = workers.result(future)
                except OSError as error:
                    if is_unreachable(error):
                        raise
                    self._refused(entry.name, error)
                    continue
                if content is not None:
                    yield entry, content

    def _headers(self, rules: Rules, firsts: Sequence[BlockKey]) -> Iterator[Segment | None]:
        """None for those that are gone, or broken: a check tells of them."""
        names = [f"{self._space}/{segment_name(first)}" for first in firsts]
        works = (
            partial(read_header, self._view, name, rules, first)
            for name, first in zip(names, firsts, strict=True)
        )
        with Workers(_THREADS, "kvtier-inspect", Throttle()) as workers:
            for name, future in zip(names, workers.begin(works), strict=True):
                self._tell(name)
                try:
                    yield workers.result(future)
                except Corrupt:
                    yield None
                except OSError as error:
                    if is_unreachable(error):
                        raise
                    yield None
