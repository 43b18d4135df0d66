"""Reads that evictors have taken out of the journals and folded into summaries.

A summary counts up to 255 journals a segment; of two epochs of one shard the later word counts,
as it does for evictors. Invariant: read after the journals, so that one that is folded meanwhile
is counted once or twice, and never lost.
"""

import errno
from collections.abc import Callable, Iterator
from typing import Final

from kvtier.evictor.journals import ENTRIES_MAX, decode, summary_start
from kvtier.evictor.layouts import SHARDS
from kvtier.evictor.table import Use
from kvtier.inspection.view import View, is_silence

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
            if is_silence(error):
                raise
            refused(name, error)
            continue
        if raw is None:
            return None
        found = decode(raw)
        if found is None:
            refused(name, OSError(errno.EBADMSG, "damaged: the reads that it told of are lost"))
            continue
        for key, use in found.items():
            known = uses.get(key)
            if known is None or known.last_s < use.last_s:
                uses[key] = use
    return uses
