"""Asking a store for what `hottest` reckons with: journals, summaries, headers.

Why by several threads: in a bucket each file is a request or two, and where nobody cleans a store
there are hundreds of journals for each engine. Invariant: journals are read before summaries, so
that one that is folded meanwhile is counted once or twice, and never lost.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

from kvtier.blocks.key import BlockKey, KeySpace
from kvtier.errors import Corrupt
from kvtier.inspection.folded import folded_reads
from kvtier.inspection.hottest import Chain, Reads
from kvtier.inspection.pace import Pace
from kvtier.inspection.segments import Rules, read_header
from kvtier.inspection.view import Entry, View, is_silence
from kvtier.inspection.workers import Workers
from kvtier.tiers.shared.format import Segment, segment_name

JOURNAL_BYTES_MAX: Final = 16 << 20
_THREADS: Final = 8


class Heat:
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
        reads = Reads()
        for entry, content in self._contents(journals):
            reads.add(content, entry.stat.modified_s)
        for uses in folded_reads(self._view, self._space, self._refused):
            reads.add_folded(uses)
        return reads.chains(partial(self._headers, rules), space, count)

    def _contents(self, journals: Sequence[Entry]) -> Iterator[tuple[Entry, bytes]]:
        works = (partial(self._view.read, entry.name, JOURNAL_BYTES_MAX) for entry in journals)
        with Workers(_THREADS, "kvtier-inspect", Pace()) as workers:
            for entry, future in zip(journals, workers.begin(works), strict=True):
                self._tell(entry.name)
                try:
                    content = workers.result(future)
                except OSError as error:
                    if is_silence(error):
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
        with Workers(_THREADS, "kvtier-inspect", Pace()) as workers:
            for name, future in zip(names, workers.begin(works), strict=True):
                self._tell(name)
                try:
                    yield workers.result(future)
                except Corrupt:
                    yield None
                except OSError as error:
                    if is_silence(error):
                        raise
                    yield None
