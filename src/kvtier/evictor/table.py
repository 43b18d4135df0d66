"""The blocks of one shard of one tree, in flat columns.

Why: a store of a million files is ranked in some 70 MB; an object a file would need ten times
that. Invariants: rows are dense and never change their number; the recency of a row is the
latest of what is known: when the file was written, and when readers say they read it.
"""

from array import array
from collections.abc import Mapping
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt


class Use(NamedTuple):
    """What readers told of a block. The time is the store's."""

    last_s: float
    times: int
    """Journals that named it, 255 at most."""


class Columns(msgspec.Struct, frozen=True, array_like=True):
    """A table as it is put into a store: names one behind the other, and where each ends."""

    names: bytes
    ends: list[int]
    sizes: list[int]
    written: list[float]
    recent: list[float]


class Table:
    """Grows by `add`; `gone` rows stay where they are and count for nothing."""

    __slots__ = ("_ends", "_names", "recent", "sizes", "used", "written")

    def __init__(self) -> None:
        self._names = bytearray()
        self._ends = array("Q")
        self.sizes = array("Q")
        """Physical bytes."""
        self.written = array("d")
        self.recent = array("d")
        """When it was last read or written, as far as anyone told."""
        self.used = array("B")
        """How many journals named it."""

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, name: bytes, size_bytes: int, written_s: float, recent_s: float) -> None:
        """One more row."""
        self._names += name
        self._ends.append(len(self._names))
        self.sizes.append(size_bytes)
        self.written.append(written_s)
        self.recent.append(recent_s)
        self.used.append(0)

    def name(self, row: int) -> bytes:
        """As it was packed."""
        return bytes(self._names[self._ends[row - 1] if row else 0 : self._ends[row]])

    def recall(self, uses: Mapping[bytes, Use]) -> None:
        """Take in what readers told. Again and again gives the same."""
        if not uses:
            return
        for row in range(len(self)):
            use = uses.get(self.name(row))
            if use is not None:
                self.used[row] = use.times
                if use.last_s > self.recent[row]:
                    self.recent[row] = use.last_s

    def recency(self) -> npt.NDArray[np.float64]:
        """The column as an array that is its own."""
        return np.array(self.recent, dtype=np.float64)

    def physical(self) -> npt.NDArray[np.int64]:
        """Bytes by row."""
        return np.array(self.sizes, dtype=np.int64)

    def columns(self) -> Columns:
        """For a store; what readers told is not in it."""
        return Columns(
            names=bytes(self._names),
            ends=self._ends.tolist(),
            sizes=self.sizes.tolist(),
            written=self.written.tolist(),
            recent=self.recent.tolist(),
        )

    @classmethod
    def of(cls, columns: Columns) -> "Table":
        """Raises ValueError where they are no table: another program may write to a store."""
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
            raise ValueError("columns that do not fit")
        return table
