"""Whom to evict first: a policy of `kvtier.eviction`, told what happened in the order it did.

Why: the policies that run in an engine's RAM rank files as well. They hear of each file when it
was written and when it was last read, for all files in the order of time; what they remember of
files that left (ghosts) is not kept between passes. Invariant: what `may_go` refuses is never
given, and nothing is given twice.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np

from kvtier import plugins
from kvtier.blocks.key import BlockKey
from kvtier.eviction.base import EvictionPolicy
from kvtier.evictor.table import Table

DEFAULT_POLICY: Final = "lru"
_USES_TOLD: Final = 3
"""More make no difference to any policy."""


def victims(table: Table, policy_name: str, newest_s: float) -> Iterator[int]:
    """Rows from the first to go to the last; none that was used after `newest_s`.

    Costs about two microseconds a row before the first, less for each. Raises InvalidSettings
    where there is no such policy.
    """
    policy: EvictionPolicy = plugins.load("eviction", policy_name)()
    _replay(table, policy)
    may_go = bytearray((table.recency() <= newest_s).tobytes())
    left = sum(may_go)
    while left:
        row = policy.victim(lambda row: bool(may_go[row]))
        if row is None:
            return
        left -= 1
        yield row


def _replay(table: Table, policy: EvictionPolicy) -> None:
    rows = len(table)
    written = np.array(table.written, dtype=np.float64)
    recent = table.recency()
    read = np.flatnonzero(recent > written)
    # Readers tell of a whole prefix in one journal, so of one time: what more journals named is
    # nearer to its beginning and told last. No more than the beginning is worth keeping.
    named = np.array(table.used, dtype=np.int64)[read]
    uses = np.concatenate([np.zeros(rows, dtype=np.int64), named])
    order = np.lexsort((uses, np.concatenate([written, recent[read]]))).tolist()
    read_rows = read.tolist()
    for event in order:
        if event < rows:
            policy.insert(event, BlockKey(table.name(event)))
        else:
            row = read_rows[event - rows]
            for _ in range(min(max(1, table.used[row]), _USES_TOLD)):
                policy.access(row)
