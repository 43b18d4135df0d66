"""The blocks of one shard of one tree in flat columns, and the order in which they are evicted.

A million files are ranked in about 70 MB; with one object per file it would take ten times as
much. The policies of `kvtier.eviction`, which run in an engine's RAM, rank files as well: a policy
is told of each write and of the last read of each file, in the order of time.

Invariants: rows are dense and keep their numbers; the recency of a row is the latest time known
of it, either of its write or of a read that a journal reports. What a policy remembers of removed
blocks (its ghosts) is not kept between passes.
"""

from array import array
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from kvtier import plugins
from kvtier.blocks.key import BlockKey
from kvtier.eviction.base import EvictionPolicy

DEFAULT_POLICY: Final = "lru"

_USES_MAX: Final = 3
"""Uses of a block that a policy is told; more make no difference to any policy."""


class Use(NamedTuple):
    """The reads of a block that journals report."""

    last_s: float
    """Time of the last journal that names the block, by the store's clock."""
    times: int
    """Number of journals that name it, 255 at most."""


class Columns(msgspec.Struct, frozen=True, array_like=True):
    """A table as it is stored: all names in one byte string, and the end of each."""

    names: bytes
    ends: list[int]
    sizes: list[int]
    written: list[float]
    recent: list[float]


class Table:
    """Blocks in columns, one row each. Rows are added and never removed."""

    __slots__ = ("_ends", "_names", "recent", "sizes", "used", "written")

    def __init__(self) -> None:
        self._names = bytearray()
        self._ends = array("Q")
        self.sizes = array("Q")
        """Physical bytes."""
        self.written = array("d")
        self.recent = array("d")
        """Time of the last known read or write."""
        self.used = array("B")
        """Number of journals that name the block."""

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, name: bytes, size_bytes: int, written_s: float, recent_s: float) -> None:
        """Append a row."""
        self._names += name
        self._ends.append(len(self._names))
        self.sizes.append(size_bytes)
        self.written.append(written_s)
        self.recent.append(recent_s)
        self.used.append(0)

    def name(self, row: int) -> bytes:
        """Return the packed name of a row."""
        return bytes(self._names[self._ends[row - 1] if row else 0 : self._ends[row]])

    def update_uses(self, uses: Mapping[bytes, Use]) -> None:
        """Update the recency of rows from `uses`. Idempotent."""
        if not uses:
            return
        for row in range(len(self)):
            use = uses.get(self.name(row))
            if use is not None:
                self.used[row] = use.times
                if use.last_s > self.recent[row]:
                    self.recent[row] = use.last_s

    def recency(self) -> npt.NDArray[np.float64]:
        """Return a copy of the column `recent`."""
        return np.array(self.recent, dtype=np.float64)

    def physical(self) -> npt.NDArray[np.int64]:
        """Return a copy of the column `sizes`."""
        return np.array(self.sizes, dtype=np.int64)

    def columns(self) -> Columns:
        """Return the table in the form that is stored, without the numbers of journals."""
        return Columns(
            names=bytes(self._names),
            ends=self._ends.tolist(),
            sizes=self.sizes.tolist(),
            written=self.written.tolist(),
            recent=self.recent.tolist(),
        )

    @classmethod
    def of(cls, columns: Columns) -> "Table":
        """Return the table that `columns` describe.

        Raises ValueError if they are inconsistent; other programs may write to a store.
        """
        table = cls()
        table._names = bytearray(columns.names)
        try:
            table._ends = array("Q", columns.ends)
            table.sizes = array("Q", columns.sizes)
        except OverflowError as error:
            raise ValueError("negative numbers") from error
        table.written = array("d", columns.written)
        table.recent = array("d", columns.recent)
        table.used = array("B", bytes(len(table)))
        lengths = {len(table), len(table.sizes), len(table.written), len(table.recent)}
        ends = columns.ends
        if (
            len(lengths) > 1
            or sorted(ends) != ends
            or (ends[-1] if ends else 0) != len(columns.names)
        ):
            raise ValueError("columns do not match")
        return table


def victims(table: Table, policy_name: str, newest_s: float) -> Iterator[int]:
    """Yield rows in the order of eviction, except rows that were used after `newest_s`.

    Each row is yielded once. Takes about two microseconds per row before the first one, and less
    for each. Raises InvalidSettings if there is no such policy.
    """
    policy: EvictionPolicy = plugins.load("eviction", policy_name)()
    _replay(table, policy)
    evictable = bytearray((table.recency() <= newest_s).tobytes())
    left = sum(evictable)
    while left:
        row = policy.victim(lambda row: bool(evictable[row]))
        if row is None:
            return
        left -= 1
        yield row


def _replay(table: Table, policy: EvictionPolicy) -> None:
    rows = len(table)
    written = np.array(table.written, dtype=np.float64)
    recent = table.recency()
    read = np.flatnonzero(recent > written)
    # A reader reports a whole prefix in one journal, so with one time. A block that more journals
    # name is nearer to the start of a prefix and most worth keeping, so it is reported last.
    named = np.array(table.used, dtype=np.int64)[read]
    uses = np.concatenate([np.zeros(rows, dtype=np.int64), named])
    order = np.lexsort((uses, np.concatenate([written, recent[read]]))).tolist()
    read_rows = read.tolist()
    for event in order:
        if event < rows:
            policy.insert(event, BlockKey(table.name(event)))
        else:
            row = read_rows[event - rows]
            for _ in range(min(max(1, table.used[row]), _USES_MAX)):
                policy.access(row)
