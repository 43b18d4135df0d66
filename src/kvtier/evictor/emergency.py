"""Making room where a store is so full that not even a heartbeat can be written.

Why: an evictor that needs space to free space would stand still exactly when it is needed. So
where the store answers ENOSPC or EDQUOT, a little is freed without a lease: the coldest blocks
of one shard after the other. Two evictors that do so at once free twice a little, no more.

Invariants: what was read or written in the grace period stays, measured from the newest file
seen, since the store's clock cannot be asked; at most a shard's share more than `ROOM` goes.
"""

import errno
import logging
from typing import Final

import numpy as np

from kvtier.clock import Clock
from kvtier.evictor.announcing import Announcer
from kvtier.evictor.budget import Amount
from kvtier.evictor.layouts import SHARDS, Kind, Tree
from kvtier.evictor.listing import beginning
from kvtier.evictor.options import Options
from kvtier.evictor.report import Report
from kvtier.evictor.shrink import Shrinking
from kvtier.evictor.table import Table
from kvtier.evictor.work import Observer, Work
from kvtier.tiers.shared.store import Store

_log = logging.getLogger(__name__)

ROOM: Final = Amount(64 << 20, 16)
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def make_room(
    store: Store,
    trees: list[Tree],
    options: Options,
    clock: Clock,
    observer: Observer,
    report: Report,
    announcer: Announcer,
) -> Amount:
    """Free about `ROOM`, told in `report`; what is still missing.

    Raises OSError where the store refuses more.
    """
    missing = ROOM
    for shard in SHARDS:
        for tree in trees:
            table, newest_s = _scan(store, shard, tree)
            if missing == Amount() or not len(table):
                continue
            work = Work(store, options, clock, _keep_nothing, newest_s, observer, report, announcer)
            part = Shrinking(work, shard, tree, table, Amount())
            part.recall()
            missing = part.free(missing, "bound")
        if missing == Amount():
            break
    _log.warning("the store is full: made room for %d bytes", ROOM.minus(missing).size_bytes)
    return missing


def _keep_nothing(shard: str) -> None:
    """There is no lease: see the top."""


def _scan(store: Store, shard: str, tree: Tree) -> tuple[Table, float]:
    table = Table()
    for found in beginning(store, tree.shard(shard)):
        if tree.kind(found.name) is Kind.BLOCK:
            recent_s = found.accessed_s if tree.is_foreign else found.modified_s
            key = tree.pack(found.name)
            table.add(key, found.physical_bytes, found.modified_s, recent_s)
    return table, float(np.max(table.recency(), initial=0.0))
