"""The evictor: in each pass it scans its shards, computes the common cut, and frees its part.

A pass takes a fair share of the leases; folds journals and sweeps the files outside of the shards,
if it holds the lease `rest`; scans its own shards and ranks their blocks by the reads in journals;
publishes the usage of its shards; computes from the usages of all shards how much has to be freed
in each; evicts from its own; and publishes their usage again.

Invariants: nothing in a shard is removed without its lease; work on a shard stops at once when
its lease is lost; an evictor that dies at any point leaves a store from which others continue.
The order of eviction over all shards is as precise as the published steps.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from kvtier.clock import Clock, MonotonicClock
from kvtier.errors import Fenced
from kvtier.evictor.budget import (
    Amount,
    ShardOfTree,
    ShardUsages,
    Usage,
    plan,
    put_usages,
    read_usages,
)
from kvtier.evictor.context import PassContext, PassStopped
from kvtier.evictor.events import Announcer, NoAnnouncer
from kvtier.evictor.filesystem import FileSystemUsage, PendingSpace
from kvtier.evictor.journals import fold, read_journals
from kvtier.evictor.layouts import LEASES, StoreTree, tree_at
from kvtier.evictor.leases import ALL, REST, DryRunLeases, Leases
from kvtier.evictor.listing import top_names
from kvtier.evictor.opening import check_store, refusal
from kvtier.evictor.options import EvictorOptions
from kvtier.evictor.report import PassObserver, PassReport, SilentObserver
from kvtier.evictor.scan import Scan, scan_shard, sweep_folders, sweep_rest
from kvtier.evictor.shard_eviction import FULL, ShardEviction, make_room
from kvtier.tiers.shared.store import Store

_log = logging.getLogger(__name__)

_NEVER: Final = -float("inf")
_NAP_S: Final = 0.25
"""Time between two checks of a waiting evictor whether it should stop."""


class Evictor:
    """An evictor for one store. Used by one thread.

    `close` releases the leases; without it, other evictors take over once they have expired.
    """

    def __init__(
        self,
        store: Store,
        options: EvictorOptions,
        *,
        clock: Clock | None = None,
        filesystem: Callable[[], FileSystemUsage] | None = None,
        mounts: Callable[[], Sequence[str]] = tuple,
        observer: PassObserver | None = None,
        announcer: Announcer | None = None,
        owner: str | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Create an evictor without leases.

        `filesystem` measures the file system; it is required with `options.of_filesystem`.
        `mounts` lists names in the store at which another file system is mounted; they are
        ignored. `owner` is the evictor's name in leases. `stopped` returns True once the evictor
        should stop: `run_once` and `wait` then raise PassStopped before their next step.
        """
        self._store = store
        self._options = options
        self._clock = clock or MonotonicClock()
        self._filesystem = filesystem
        self._pending_space = PendingSpace(self._clock)
        self._mounts = mounts
        self._observer = observer or SilentObserver()
        self._announcer = announcer or NoAnnouncer()
        self._stopped = stopped
        self._leases: Leases | DryRunLeases
        if options.dry_run:
            self._leases = DryRunLeases(store)
        else:
            self._leases = Leases(store, self._clock, options.lease_s, owner)
        self._swept_s = _NEVER
        self._rest = ShardUsages({})

    @property
    def owned(self) -> list[str]:
        """The shards whose lease this evictor holds."""
        return self._leases.owned

    def check(self) -> None:
        """Check the store. Raises InvalidSettings if PATH or a quota must be a mistake."""
        trees, refused = self._trees()
        check_store(
            [top for top in top_names(self._store) if top != LEASES],
            trees,
            refused,
            self._mounts(),
            self._options,
        )

    def run_once(self) -> PassReport:
        """Make one pass and return its report.

        Raises PassStopped, and OSError if the store does not answer at all.
        """
        began_s = self._clock.now_s()
        report = PassReport(dry_run=self._options.dry_run)
        owned, now_s = self._begin(report)
        self._expected_bytes(0)
        context = PassContext(
            self._store,
            self._options,
            self._clock,
            self._keep,
            now_s,
            self._observer,
            report,
            self._announcer,
        )
        report.shards_owned = len(owned)
        report.shards_of_others = len(ALL) - len(owned)
        trees, report.refused_trees = self._trees()
        for tree in trees:
            report.tree(tree.name, is_foreign=tree.is_foreign)
        swept_s = self._swept_s
        if REST in owned:
            self._guarded(context, REST, lambda: self._process_rest(context, trees))
        shards = [shard for shard in owned if shard != REST]
        parts = self._scan(context, shards, trees)
        published = {shard: self._publish(context, shard, own) for shard, own in parts.items()}
        if REST in self._leases.owned and self._rest.usages:
            published[REST] = self._rest
        usages = read_usages(self._store, published)
        self._free(context, parts, usages)
        if swept_s != self._swept_s:  # At the end, to include folders emptied in this pass.
            self._guarded(context, REST, lambda: sweep_folders(context, trees))
        self._announcer.flush()
        report.fenced = self._leases.fenced
        report.seconds = self._clock.now_s() - began_s
        return report

    def wait(self, interval_s: float) -> None:
        """Sleep between two passes and renew the leases meanwhile. Raises PassStopped."""
        until_s = self._clock.now_s() + interval_s
        while (left_s := until_s - self._clock.now_s()) > 0:
            self._sleep(min(left_s, self._options.lease_s / 4))
            try:
                self._leases.renew()
            except OSError as error:
                _log.warning("the heartbeat failed: %s", error)

    def close(self) -> None:
        """Release the leases. Raises OSError if the store refuses."""
        self._leases.release()

    def _keep(self, shard: str) -> None:
        """Renew the lease of `shard` if it is due. Raises Fenced and PassStopped."""
        if self._stopped():
            raise PassStopped
        self._leases.keep(shard)

    def _sleep(self, seconds: float) -> None:
        """Sleep in short naps. Raises PassStopped."""
        until_s = self._clock.now_s() + seconds
        while (left_s := until_s - self._clock.now_s()) > 0:
            if self._stopped():
                raise PassStopped
            self._clock.sleep(min(left_s, _NAP_S))

    def _begin(self, report: PassReport) -> tuple[list[str], float]:
        """Return the owned shards and the store's time; make room first in a full store."""
        try:
            return self._leases.balance(), self._leases.now_s()
        except OSError as error:
            if error.errno not in FULL or self._options.dry_run:
                raise
        trees, _ = self._trees()
        make_room(
            self._store,
            trees,
            self._options,
            self._clock,
            self._observer,
            report,
            self._announcer,
        )
        return self._leases.balance(), self._leases.now_s()

    def _trees(self) -> tuple[list[StoreTree], dict[str, str]]:
        """Return the trees to evict from, and those that must not be touched, with the reason."""
        found = [tree_at(top) for top in top_names(self._store) if top != LEASES]
        elsewhere = {mount.partition("/")[0] for mount in self._mounts()}
        trees = [tree for tree in found if tree is not None and tree.name not in elsewhere]
        reasons = {tree.name: refusal(self._store, tree) for tree in trees}
        refused = {name: reason for name, reason in reasons.items() if reason is not None}
        return [tree for tree in trees if tree.name not in refused], refused

    def _process_rest(self, context: PassContext, trees: list[StoreTree]) -> None:
        for tree in trees:
            self._guarded(context, REST, partial(self._fold, context, tree))
        if self._clock.now_s() - self._swept_s < self._options.sweep_s:
            return
        sizes = sweep_rest(context, trees, [*context.report.refused_trees, *self._mounts()])
        self._swept_s = self._clock.now_s()
        usages = {tree: Usage(amount.size_bytes, amount.inodes) for tree, amount in sizes.items()}
        self._rest = ShardUsages(usages)
        if not self._options.dry_run:
            put_usages(self._store, REST, self._rest)

    def _fold(self, context: PassContext, tree: StoreTree) -> None:
        journals = read_journals(self._store, tree, spared_s=context.newest_s)
        if journals.by_name and not self._options.dry_run:
            epoch = self._leases.epoch(REST)
            fold(self._store, tree, journals, epoch, context.now_s, lambda: context.keep(REST))

    def _scan(
        self, context: PassContext, shards: list[str], trees: list[StoreTree]
    ) -> dict[str, dict[str, ShardEviction]]:
        """Scan the owned shards, apply the reads in journals, and remove expired blocks."""
        parts: dict[str, dict[str, ShardEviction]] = {}

        def scan(shard: str) -> None:
            found: Scan = scan_shard(context, shard, trees)
            own: dict[str, ShardEviction] = {}
            for tree in trees:
                other = found.other.get(tree.name, Amount())
                part = ShardEviction(context, shard, tree, found.tables[tree.name], other)
                try:
                    part.update_uses()
                except OSError as error:  # The other trees are not affected.
                    context.note_refused(f"read the journals of {tree.name}", error)
                own[tree.name] = part
            parts[shard] = own
            for part in own.values():
                self._guarded(context, shard, part.expire)

        for shard in shards:
            self._guarded(context, shard, partial(scan, shard))
        return parts

    def _publish(
        self, context: PassContext, shard: str, own: Mapping[str, ShardEviction]
    ) -> ShardUsages:
        record = ShardUsages({tree: part.usage for tree, part in own.items()})
        if not self._options.dry_run:
            self._guarded(context, shard, lambda: put_usages(self._store, shard, record))
        return record

    def _free(
        self,
        context: PassContext,
        parts: Mapping[str, Mapping[str, ShardEviction]],
        usages: Mapping[ShardOfTree, Usage],
    ) -> None:
        """Evict this evictor's part of what all shards have to free, and complete the report."""
        report = context.report
        held = self._held(report, usages)
        report.used_bytes, report.used_inodes = held
        before = Amount(report.freed_bytes, report.freed_files)
        trees_before = {name: tree.freed.size_bytes for name, tree in report.trees.items()}
        wanted = plan(usages, self._options.bounds, self._options.quotas, context.newest_s, held)
        for reason, shares in wanted._asdict().items():
            for (shard, tree), amount in shares.items():
                if tree in parts.get(shard, {}):
                    part = parts[shard][tree]
                    self._guarded(context, shard, partial(part.free, amount, reason))
        for shard in sorted({shard for shard, _ in (*wanted.quota, *wanted.bound)} & set(parts)):
            self._publish(context, shard, parts[shard])
        freed = Amount(report.freed_bytes, report.freed_files).minus(before)
        self._expected_bytes(freed.size_bytes)
        left = held.minus(freed)
        report.left_bytes, report.left_inodes = left
        short = self._options.bounds.excess(left)
        report.short_bytes, report.short_inodes = short
        for name, quota in self._options.quotas.items():
            if name in report.trees:
                tree = report.trees[name]
                gone_bytes = tree.freed.size_bytes - trees_before[name]
                tree.short_bytes = quota.size_bytes.excess(tree.size_bytes - gone_bytes)

    def _held(self, report: PassReport, usages: Mapping[ShardOfTree, Usage]) -> Amount:
        """Return the use to compare with the bound; enter the usage of each tree in the report."""
        used = Amount()
        for (_, tree), usage in usages.items():
            used = used.plus(usage.amount)
            if tree in report.trees:
                report.trees[tree].files += usage.files
                report.trees[tree].size_bytes += usage.size_bytes
        expected_bytes = self._expected_bytes(report.freed_bytes)
        return used if expected_bytes is None else Amount(expected_bytes, used.inodes)

    def _expected_bytes(self, freed_bytes: int) -> int | None:
        """Return the use of the file system once all removed files are free.

        `freed_bytes` were removed since the last call. Returns None if the bounds do not apply to
        the file system.
        """
        if not self._options.of_filesystem or self._filesystem is None:
            return None
        used_bytes = self._filesystem().used_bytes
        self._pending_space.removed(freed_bytes, used_bytes)
        return self._pending_space.expected(used_bytes)

    def _guarded(self, context: PassContext, shard: str, step: Callable[[], object]) -> None:
        """Run a step in a shard; if the lease is lost or the store refuses, skip the step."""
        try:
            context.keep(shard)
            step()
        except Fenced as error:
            _log.debug("%s", error)
        except OSError as error:
            context.note_refused(f"shard {shard}", error)
