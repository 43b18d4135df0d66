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
"""Refused calls that are logged in a pass; all are counted."""
_OBSERVED_FILES: Final = 256
"""Scanned files between two calls of the observer."""


@runtime_checkable
class HasTemporaries(Protocol):
    """A store whose writers leave temporary files when they die."""

    def remove_temporary(self, name: str) -> bool:
        """Remove a temporary file; return False if it is missing."""
        ...


class PassStopped(Exception):
    """Raised between two steps of a pass if the evictor should stop."""


class PassContext:
    """The state that all steps of one pass share. Used by one thread."""

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
        """Begin a pass at `now_s` by the store's clock.

        `keep` renews the lease of a shard and raises Fenced if it is lost. `report` is one to
        continue, if the pass has already removed files.
        """
        self.store = store
        self.options = options
        self.clock = clock
        self.now_s = now_s
        self.newest_s = now_s - options.grace_s
        """Blocks that were used later than this stay."""
        self.journals: dict[str, Journals] = {}
        """The journals that were read in this pass, by tree."""
        self.report = report or PassReport(dry_run=options.dry_run)
        self.announcer: Announcer = announcer or NoAnnouncer()
        self._keep = keep
        self._observer = observer
        self._scans = RateWaiter(options.files_per_second, clock)
        self._deletes = RateWaiter(options.deletes_per_second, clock)

    def keep(self, shard: str) -> None:
        """Renew the lease of `shard` if it is due. Raises Fenced if it is lost."""
        self._keep(shard)

    def before_file(self, shard: str) -> None:
        """Count a file before it is looked at; wait for the scan rate and keep the lease."""
        self._keep(shard)
        while not self._scans.wait():
            self._keep(shard)
        self.report.scanned_files += 1
        if self.report.scanned_files % _OBSERVED_FILES == 0:
            self._observer.scanned(shard, _OBSERVED_FILES)

    def remove(self, shard: str, name: str, size_bytes: int, reason: str) -> bool:
        """Remove a file of any kind; return False if it is missing or the store refuses."""
        if self.options.dry_run:
            self._keep(shard)
        else:
            while not self._deletes.wait():
                self._keep(shard)
            self._keep(shard)  # The wait may have taken a whole second.
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
            _log.warning("%a is not a valid name in a store; remove it by hand", name)
            return False
        return self.store.remove(name)
