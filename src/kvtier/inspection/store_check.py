"""Verifies and repairs a whole store: manifests, names, headers, lengths, every block's checksum.

The check goes by name and can be resumed after any position it has returned. Several threads verify
segments; their results are taken in the order of the walk, so a position covers everything before
it.

Invariants: without repairs, nothing is changed. A repair moves broken segments to quarantine, as a
reader does, and only if they are still the files that were verified, and removes temporary files
whose age is computed from two times of the store's own clock. Changes that engines and evictors
make during the check are no problems. A file that cannot be read is a problem, not an exception.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final, NamedTuple

from kvtier.blocks.key import BlockKey
from kvtier.clock import unique_id
from kvtier.errors import InvalidSettings
from kvtier.evictor.context import HasTemporaries
from kvtier.inspection.report import CheckReport, Finding
from kvtier.inspection.segments import BadSegment, Rules, Verification, rules_of, verify_twice
from kvtier.inspection.spaces import FileKind, FoundSpace, Secrets, StoreLayout
from kvtier.inspection.view import Entry, View, printable
from kvtier.inspection.workers import Throttle, Workers
from kvtier.tiers.shared.format import parse_segment_name
from kvtier.tiers.shared.reading import SegmentHeaders
from kvtier.tiers.shared.store import Store

STALE_S: Final = 3600.0
"""A temporary file that was not written to for this long belongs to a crashed writer."""
THREADS: Final = 4
_AHEAD = 8
"""Segments per thread that are being verified, or verified and not yet reported."""
_REPAIRABLE = frozenset({"segment", "checksum"})
_BY_HAND = "; --repair keeps it: remove it by hand if it is not needed"


class Repairs:
    """The changes that a repair may make to a store. Methods block and raise OSError."""

    def __init__(self, store: Store) -> None:
        """Repair `store`, which `close` closes."""
        self._store = store

    def now_s(self) -> float:
        """Return the store's current time, by writing a file and removing it."""
        # An evictor removes a file of this name if a crash leaves one.
        stamp = f"now-{unique_id()[:16]}"
        try:
            return self._store.put(stamp, b"").modified_s
        finally:
            self._store.remove(stamp)

    def quarantine(
        self, space: str, rules: Rules, first: BlockKey, seen: Entry, reason: str
    ) -> str | None:
        """Move a broken segment to quarantine and return what was done.

        Returns None if the file is no longer the one in `seen`.
        """
        headers = SegmentHeaders(
            self._store, space, rules.checksum, rules.space_digest, rules.block_bytes
        )
        found = self._store.stat(seen.name)
        if found is None or found.version != seen.stat.version:
            return None
        before = self._kept(space)
        headers.quarantine(first, reason)
        if not headers.quarantined:
            return None
        is_kept = any(first.hex() in name for name in self._kept(space) - before)
        return "quarantined" if is_kept else "removed, the quarantine is full"

    def remove_temporary(self, name: str) -> str | None:
        """Remove a crashed writer's file and return what was done, None for nothing.

        Raises ValueError if `name` is not that of a temporary file.
        """
        if not isinstance(self._store, HasTemporaries):
            return None
        return "removed" if self._store.remove_temporary(name) else None

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    def _kept(self, space: str) -> set[str]:
        return {entry.name for entry in self._store.list(f"{space}/quarantine").entries}


class _Step(NamedTuple):
    entry: Entry
    kind: FileKind
    verdict: Future[Verification] | None


def rules_for(spaces: Sequence[FoundSpace], secrets: Secrets) -> dict[str, Rules]:
    """Return the rules of each key space that has a manifest.

    Raises InvalidSettings if a key space needs a secret that is not in `secrets`.
    """
    rules = {}
    for space in spaces:
        if space.manifest is None:
            continue
        checksum = secrets.checksum_of(space.manifest)
        if checksum is None:
            raise InvalidSettings(
                f"{space.name} was written with a secret that was not given; give its file "
                "(shared.key_file) with --key-file, or name other key spaces with --space"
            )
        rules[space.name] = rules_of(space.manifest, checksum)
    return rules


class StoreCheck:
    """One check of one store. Used by one thread; it starts worker threads while it runs."""

    def __init__(
        self,
        view: View,
        layout: StoreLayout,
        rules: Mapping[str, Rules],
        report: CheckReport,
        *,
        now_s: float,
        throttle: Throttle | None = None,
        repairs: Repairs | None = None,
        skipped: Sequence[str] = (),
        threads: int = THREADS,
    ) -> None:
        """Prepare a check that adds its findings to `report`.

        `now_s` is the time by the store's clock. `skipped` are top-level folders to ignore, such
        as trees of other systems.
        """
        self._view = view
        self._layout = layout
        self._rules = rules
        self._report = report
        self._now_s = now_s
        self._throttle = throttle or Throttle()
        self._repairs = repairs
        self._skipped = frozenset(skipped)
        self._threads = threads

    def run(self, after: str = "") -> Iterator[str]:
        """Check everything after the position `after`; yield the position of each file when done.

        The report is up to date at each yield. Closing the iterator stops the check. Raises
        Stopped after `throttle.stop()`, and OSError if the storage does not answer.
        """
        steps: deque[_Step] = deque()
        with Workers(self._threads, "kvtier-fsck", self._throttle) as workers:
            try:
                walk = self._view.walk("", self._layout.looks_into, self._on_unreadable, after)
                for entry in walk:
                    steps.append(self._begin(workers, entry))
                    if len(steps) > self._threads * _AHEAD:
                        yield self._end(workers, steps)
                while steps:
                    yield self._end(workers, steps)
            finally:
                if steps:  # stopped: running work ends soon, queued work never starts
                    self._throttle.stop()
                for step in steps:
                    if step.verdict is not None:
                        step.verdict.cancel()
        self._report.complete = True

    def _begin(self, workers: Workers, entry: Entry) -> _Step:
        kind = self._layout.kind_of(entry.name)
        verdict = None
        space, _, name = entry.name.partition("/")
        if kind is FileKind.SEGMENT and entry.is_file and space in self._rules:
            first = parse_segment_name(name)
            rules = self._rules[space]
            look = partial(verify_twice, self._view, entry.name, rules, first, self._throttle)
            verdict = workers.submit(look)
        return _Step(entry, kind, verdict)

    def _end(self, workers: Workers, steps: deque[_Step]) -> str:
        """Report the result of the first step and return its position."""
        entry, kind, verdict = steps[0]
        if verdict is not None:
            self._report_verdict(entry, workers.result(verdict))
        elif kind is FileKind.UNKNOWN:
            if not entry.is_folder and self._layout.looks_into(entry.name):
                self._add(entry, "irregular", f"a {entry.what}, not a folder{_BY_HAND}")
            elif entry.name not in self._skipped:
                self._add(entry, "unknown", f"a {entry.what} that is not kvtier's; left alone")
        elif not entry.is_file:
            self._add(entry, "irregular", f"a {entry.what}, not a file{_BY_HAND}")
        elif kind is FileKind.SEGMENT:
            self._report.unverified += 1
        elif kind is FileKind.MISPLACED:
            self._add(entry, "misplaced", f"no engine looks for it here{_BY_HAND}")
        elif kind is FileKind.QUARANTINED:
            self._report.quarantined += 1
        elif kind is FileKind.TEMPORARY:
            self._report_temporary(entry)
        steps.popleft()
        return entry.position

    def _report_verdict(self, entry: Entry, verdict: Verification) -> None:
        report = self._report
        if verdict is None:
            report.vanished += 1
            return
        report.segments += 1
        if not isinstance(verdict, BadSegment):
            report.blocks += len(verdict.keys)
            report.bytes += verdict.total_bytes
            return
        repaired = None
        if verdict.kind in _REPAIRABLE and self._repairs is not None:
            repaired = self._quarantine(entry, verdict.reason, self._repairs)
        self._add(entry, verdict.kind, verdict.reason, repaired)

    def _quarantine(self, entry: Entry, reason: str, repairs: Repairs) -> str | None:
        space, _, name = entry.name.partition("/")
        first = parse_segment_name(name) or BlockKey(b"")
        try:
            return repairs.quarantine(space, self._rules[space], first, entry, reason)
        except OSError as error:
            return _failed(error)

    def _report_temporary(self, entry: Entry) -> None:
        age_s = self._now_s - entry.stat.modified_s
        if age_s <= STALE_S:
            return
        repaired = None
        if self._repairs is not None:
            try:
                repaired = self._repairs.remove_temporary(entry.name)
            except (OSError, ValueError) as error:
                repaired = _failed(error)
        reason = f"{entry.stat.size} bytes, not written to for {age_s / 3600:.0f} h"
        self._add(entry, "temporary", reason, repaired)

    def _on_unreadable(self, name: str, error: OSError) -> None:
        reason = f"this folder cannot be listed: {error.strerror}"
        finding = Finding(file=printable(name), kind="unreadable", reason=reason)
        # The walk is ahead of the reported position: a resumed check may list the folder again.
        if finding not in self._report.problems:
            self._report.add(finding)

    def _add(self, entry: Entry, kind: str, reason: str, repaired: str | None = None) -> None:
        file = printable(entry.name)
        self._report.add(Finding(file=file, kind=kind, reason=reason, repaired=repaired))


def _failed(error: Exception) -> str:
    """Return the text for `Finding.repaired` after a repair that failed."""
    return f"not repaired: {error}"
