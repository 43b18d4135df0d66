"""The requests of a store on a bad day: faults below `StoreTier`, in front of any `Store`.

Answers get lost after the deed, objects are kept cut or changed, listings are old, everything
is removed by a stranger. Invariant: while nothing is armed, each method is the inner store's.
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
    """A `Store` around `inner` under `faults`. Any thread. `close` leaves `inner` open."""

    def __init__(self, inner: Store, faults: Faults) -> None:
        self._inner = inner
        self._faults = faults
        self._pages: dict[tuple[str, str, int], ListPage] = {}
        self._stats: dict[str, Stat | None] = {}

    def publish(self, name: str, parts: Sequence[Buffer]) -> bool:
        """May keep other bytes than given, lose its answer, or find what was removed."""
        self._begin(CallKind.WRITES)
        if self._faults.strikes(FaultKind.STALE_LISTING):
            return False
        won = self._inner.publish(name, self._spoilt(parts))
        self._faults.suffer(_REQUEST | CallKind.WRITES)
        return won

    def put(self, name: str, data: bytes) -> Stat:
        """May keep other bytes than given."""
        self._begin(CallKind.WRITES)
        kept = self._spoilt([np.frombuffer(data, np.uint8)])
        return self._inner.put(name, b"".join(map(bytes, kept)))

    def read(self, name: str, offset: int, buffers: Sequence[Buffer]) -> Read | None:
        """May miss what is there, fill less than asked, or fill in other bytes."""
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
        """May be that of a while ago."""
        self._begin(CallKind.OPENS)
        if name in self._stats and self._faults.strikes(FaultKind.STALE_LISTING):
            return self._stats[name]
        stat = self._stats[name] = self._inner.stat(name)
        return None if stat is None else self._aged(stat)

    def remove(self, name: str) -> bool:
        """May lose its answer."""
        self._begin(CallKind.OPENS)
        removed = self._inner.remove(name)
        self._faults.suffer(_REQUEST)
        return removed

    def move(self, name: str, to: str) -> bool:
        """May lose its answer."""
        self._begin(CallKind.WRITES)
        moved = self._inner.move(name, to)
        self._faults.suffer(_REQUEST)
        return moved

    def list(self, folder: str, after: str = "", limit: int = 1000) -> ListPage:
        """May be that of a while ago, or end early."""
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
        """Nothing: others use what is inside."""

    def _begin(self, call: CallKind) -> None:
        self._faults.suffer(_REQUEST | call)
        if self._faults.strikes(FaultKind.FOLDER_REMOVED):
            for entry in self._inner.list("").entries:
                self._inner.remove(entry.name)

    def _spoilt(self, parts: Sequence[Buffer]) -> Sequence[Buffer]:
        """What is kept of an object: all of it, unless what is armed says otherwise."""
        faults = self._faults
        if not any(len(part) for part in parts):
            return parts  # nothing of it can be changed
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
        """Change the stored object itself, where that is what is armed."""
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
        """Fewer bytes than there are; behind them stands what nobody wrote."""
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
