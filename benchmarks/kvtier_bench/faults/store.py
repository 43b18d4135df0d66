"""The requests of an object store with injected faults, for use below `StoreTier`.

Answers get lost after the operation, objects are stored truncated or changed, listings are
outdated, and other clients remove everything. Invariant: while no fault is armed, each method is
that of the inner store.
"""

import contextlib
from collections.abc import Sequence

import numpy as np

from kvtier.tiers.base import Buffer
from kvtier.tiers.shared.store import ListEntry, ListPage, Read, Stat, Store
from kvtier_bench.faults.faults import CallKind, FaultKind, Faults
from kvtier_bench.faults.files import flip

_REQUEST = CallKind.OPENS | CallKind.NAMES
_YEAR_S = 365 * 86_400.0


class FaultyStore:
    """A `Store` that injects faults into `inner`, which stays open. Safe from any thread."""

    def __init__(self, inner: Store, faults: Faults) -> None:
        self._inner = inner
        self._faults = faults
        self._pages: dict[tuple[str, str, int], ListPage] = {}
        self._stats: dict[str, Stat | None] = {}

    def publish(self, name: str, parts: Sequence[Buffer]) -> bool:
        """Publish; may store wrong bytes, lose the answer, or see a removed object as existing."""
        self._begin(CallKind.WRITES)
        if self._faults.strikes(FaultKind.STALE_LISTING):
            return False
        won = self._inner.publish(name, self._spoilt(parts))
        self._faults.inject(_REQUEST | CallKind.WRITES)
        return won

    def put(self, name: str, data: bytes) -> Stat:
        """Put an object; may store wrong bytes."""
        self._begin(CallKind.WRITES)
        kept = self._spoilt([np.frombuffer(data, np.uint8)])
        return self._inner.put(name, b"".join(map(bytes, kept)))

    def read(self, name: str, offset: int, buffers: Sequence[Buffer]) -> Read | None:
        """Read; may miss an existing object, or fill in too few or wrong bytes."""
        self._begin(CallKind.OPENS)
        if self._faults.strikes(FaultKind.STALE_LISTING):
            return None
        self._damage(name)
        read = self._inner.read(name, offset, buffers)
        if read is None or not read.filled_bytes:
            return read
        if self._faults.strikes(FaultKind.BIT_FLIP):
            filled = buffers[0][: read.filled_bytes]
            flip(filled, self._faults)
        if self._faults.strikes(FaultKind.PARTIAL):
            return self._short(read, buffers)
        return Read(self._aged(read.stat), read.filled_bytes)

    def stat(self, name: str) -> Stat | None:
        """Return an object's status, which may be outdated."""
        self._begin(CallKind.OPENS)
        if name in self._stats and self._faults.strikes(FaultKind.STALE_LISTING):
            return self._stats[name]
        stat = self._stats[name] = self._inner.stat(name)
        return None if stat is None else self._aged(stat)

    def remove(self, name: str) -> bool:
        """Remove an object; may lose the answer."""
        self._begin(CallKind.OPENS)
        removed = self._inner.remove(name)
        self._faults.inject(_REQUEST)
        return removed

    def move(self, name: str, to: str) -> bool:
        """Move an object; may lose the answer."""
        self._begin(CallKind.WRITES)
        moved = self._inner.move(name, to)
        self._faults.inject(_REQUEST)
        return moved

    def list(self, folder: str, after: str = "", limit: int = 1000) -> ListPage:
        """List objects; the page may be outdated or end early."""
        self._begin(CallKind.OPENS)
        asked = folder, after, limit
        if asked in self._pages and self._faults.strikes(FaultKind.STALE_LISTING):
            return self._pages[asked]
        page = self._inner.list(folder, after, limit)
        self._pages[asked] = page
        if len(page.entries) > 1 and self._faults.strikes(FaultKind.PARTIAL):
            kept = page.entries[: len(page.entries) // 2]
            return ListPage(kept, kept[-1].name)
        return ListPage(
            [ListEntry(each.name, self._aged(each.stat)) for each in page.entries], page.after
        )

    def close(self) -> None:
        """Do nothing, because other tiers use the inner store."""

    def _begin(self, call: CallKind) -> None:
        self._faults.inject(_REQUEST | call)
        if self._faults.strikes(FaultKind.FOLDER_REMOVED):
            for entry in self._inner.list("").entries:
                self._inner.remove(entry.name)

    def _spoilt(self, parts: Sequence[Buffer]) -> Sequence[Buffer]:
        """Return what is stored of an object, damaged if such a fault strikes."""
        faults = self._faults
        if not any(len(part) for part in parts):
            return parts  # there are no bytes to change
        if faults.strikes(FaultKind.TORN_WRITE):
            whole = np.concatenate(parts)
            whole[faults.pick(len(whole)) :] = 0
        elif faults.strikes(FaultKind.TRUNCATED):
            whole = np.concatenate(parts)
            whole = whole[: faults.pick(len(whole))]
        elif faults.strikes(FaultKind.OVER_LONG):
            whole = np.concatenate([*parts, np.full(1 + faults.pick(4096), 0x5A, np.uint8)])
        elif faults.strikes(FaultKind.BIT_FLIP):
            whole = np.concatenate(parts)
            flip(whole, faults)
        else:
            return parts
        return [whole]

    def _damage(self, name: str) -> None:
        """Damage the stored object itself, if such a fault strikes."""
        cuts, grows = (
            self._faults.strikes(FaultKind.TRUNCATED),
            self._faults.strikes(FaultKind.OVER_LONG),
        )
        stat = self._inner.stat(name) if cuts or grows else None
        if stat is None or not stat.size:
            return
        whole = np.zeros(stat.size + 4096, np.uint8)
        with contextlib.suppress(OSError):
            if self._inner.read(name, 0, [whole[: stat.size]]) is not None:
                size = stat.size + 1 + self._faults.pick(4096)
                if cuts:
                    size = self._faults.pick(stat.size)
                self._inner.put(name, bytes(whole[:size]))

    def _short(self, read: Read, buffers: Sequence[Buffer]) -> Read:
        """Return a shorter read, with garbage behind its bytes."""
        filled_bytes = self._faults.pick(read.filled_bytes)
        at = 0
        for buffer in buffers:
            buffer[max(0, filled_bytes - at) :] = 0xA5
            at += len(buffer)
        return Read(read.stat, filled_bytes)

    def _aged(self, stat: Stat) -> Stat:
        if self._faults.strikes(FaultKind.CLOCK_STEP):
            return stat._replace(
                modified_s=stat.modified_s + (self._faults.pick(60) - 30) * _YEAR_S
            )
        return stat
