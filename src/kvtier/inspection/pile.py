"""Many files as a few numbers: how many, how long, how large on the disk, how old."""

from array import array

import msgspec
import numpy as np

from kvtier.inspection.view import Entry


class Bulk(msgspec.Struct, frozen=True, kw_only=True):
    """Of all files of one kind. Times are Unix seconds of the store's clock; None of no files."""

    files: int
    nominal_bytes: int
    """The lengths of the files."""
    physical_bytes: int
    """What they take on the disk, as `du` says; in a bucket their lengths."""
    oldest_s: float | None
    median_s: float | None
    newest_s: float | None


class Pile:
    """Takes in one file after the other: 8 bytes of memory each."""

    def __init__(self) -> None:
        self._nominal_bytes = 0
        self._physical_bytes = 0
        self._modified_s = array("d")

    def add(self, entry: Entry) -> None:
        """One more."""
        self._nominal_bytes += entry.stat.size
        self._physical_bytes += entry.physical_bytes
        self._modified_s.append(entry.stat.modified_s)

    def bulk(self) -> Bulk:
        """All so far."""
        times = np.asarray(self._modified_s)
        return Bulk(
            files=len(times),
            nominal_bytes=self._nominal_bytes,
            physical_bytes=self._physical_bytes,
            oldest_s=float(times.min()) if len(times) else None,
            median_s=float(np.median(times)) if len(times) else None,
            newest_s=float(times.max()) if len(times) else None,
        )
