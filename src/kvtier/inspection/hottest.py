"""The prefixes that are read most, from what readers wrote into their access journals.

A journal names each segment once that a process read in some ten seconds: a read here is such
a mention, whether it stands in a journal still or was folded into an evictor's summary. A chain
goes on from a segment to the one that follows it and is read most, as long as that is read half
as often as the chain's first; what else follows begins chains of its own. So a system prompt
that all requests share is one chain, and not a part of each request's.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import nlargest
from itertools import pairwise
from typing import Final

import msgspec

from kvtier.blocks.key import BlockKey, KeySpace
from kvtier.evictor.table import Use
from kvtier.tiers.shared.format import (
    KEY_BYTES_MAX,
    KEY_BYTES_MIN,
    Segment,
    parse_segment_name,
)

HEADERS_MAX: Final = 4096
"""Headers read at most, of the segments read most."""
SEGMENTS_MAX: Final = 1_000_000
"""Counted at most: what journals name beyond them is passed over."""
Load = Callable[[Sequence[BlockKey]], Iterable[Segment | None]]
"""Verified headers of the segments with these first keys, in their order; None: there is none."""
_GROUP_BYTES = 4


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """Consecutive segments of one prefix."""

    first_key: str
    """Hex of the first block's key, which names the first segment."""
    parent: str | None
    """Hex of the block before it; None where the prefix begins here, empty where unknown."""
    reads: int
    """Of the first segment."""
    last_read_s: float
    """On the store's clock."""
    segments: int
    blocks: int
    tokens: int | None
    """None where the key names a KV-cache group that the key space does not have."""


class Reads:
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
