"""The context of one pass: store, options, rates, report, and the leases it depends on.

Scanning, sweeping and evicting all have to keep a lease alive, keep to a rate, count what they
do, and survive a store that refuses calls. Invariants: nothing is removed before the lease of its
shard was checked; a dry run changes nothing; a refused call is counted and logged, and the pass
continues.
"""

import logging
from collections.abc import Callable
from typing import Final, Protocol, runtime_checkable

from kvtier.clock import Clock
from kvtier.evictor.events import Announcer, NoAnnouncer
from kvtier.evictor.journals import Journals
from kvtier.evictor.options import EvictorOptions
from kvtier.evictor.pace import RateWaiter
from kvtier.evictor.report import PassObserver, PassReport
from kvtier.tiers.shared.store import Store, check_name, is_temporary

_log = logging.getLogger(__name__)
_LOGGED_MAX: Final = 10
"""Refusals logged in a pass; the rest are counted."""


@runtime_checkable
class HasTemporaries(Protocol):
    """A store whose writers leave temporary files when they die."""

    def remove_temporary(self, name: str) -> bool:
        """False where it is gone."""
        ...


class PassStopped(Exception):
    """The evictor was asked to stop; the pass ends between two steps."""


class PassContext:
    """Of one pass. One thread."""

    def __init__(
        self,
        store: Store,
        options: EvictorOptions,
        clock: Clock,
        keep: Callable[[str], None],
        now_s: float,
        observer: PassObserver,
        report: PassReport | None = None,
        announcer: Announcer | None = None,
    ) -> None:
        """`keep` raises Fenced where a shard is not ours; `now_s` is the store's clock.

        `report`: one to go on with, where the pass began before this.
        """
        self.store = store
        self.options = options
        self.clock = clock
        self.now_s = now_s
        self.newest_s = now_s - options.grace_s
        """What was used later stays."""
        self.journals: dict[str, Journals] = {}
        """What was read of them in this pass, by tree."""
        self.report = report or PassReport(dry_run=options.dry_run)
        self.announcer: Announcer = announcer or NoAnnouncer()
        self._keep = keep
        self._observer = observer
        self._scans = RateWaiter(options.files_per_second, clock)
        self._deletes = RateWaiter(options.deletes_per_second, clock)

    def keep(self, shard: str) -> None:
        """Raises Fenced where `shard` is another's."""
        self._keep(shard)

    def see(self, shard: str) -> None:
        """Before a file is looked at: keeps lease and rate."""
        self._keep(shard)
        while not self._scans.wait():
            self._keep(shard)
        self.report.scanned_files += 1
        if self.report.scanned_files % 256 == 0:
            self._observer.scanned(shard, 256)

    def remove(self, shard: str, name: str, size_bytes: int, reason: str) -> bool:
        """Remove a file, whatever it is; False where that was refused or it was gone."""
        if self.options.dry_run:
            self._keep(shard)
        else:
            while not self._deletes.wait():
                self._keep(shard)
            self._keep(shard)  # the pace may have slept for a whole second
            try:
                if not self._remove(name):
                    return False
            except OSError as error:
                self.note_refused(f"remove {name}", error)
                return False
        self.report.freed[reason].add(size_bytes)
        self._observer.removed(reason, size_bytes)
        return True

    def note_refused(self, what: str, error: OSError) -> None:
        """Count a call that the store refused."""
        self.report.refused_calls += 1
        if self.report.refused_calls <= _LOGGED_MAX:
            _log.warning("%s: %s", what, error)

    def _remove(self, name: str) -> bool:
        if is_temporary(name.rpartition("/")[2]) and isinstance(self.store, HasTemporaries):
            return self.store.remove_temporary(name)
        try:
            check_name(name)
        except ValueError:
            _log.warning("%a is no name that a store can have: remove it by hand", name)
            return False
        return self.store.remove(name)
