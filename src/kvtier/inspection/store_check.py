"""Putting a store in order: only what is known to be broken or abandoned is touched.

Invariants: a broken segment is moved to the quarantine, as a reader would do it, and only if it
still is the file that was looked at; an age is told by two times of the store's own clock;
nothing else is moved or removed.
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
"""A temporary file that nobody has written to for that long has no writer any more."""


class Repairs:
    """What may be done to a store. Methods block and raise OSError. Close it."""

    def __init__(self, store: Store) -> None:
        """`store` is closed with this."""
        self._store = store

    def now_s(self) -> float:
        """The time on the store's clock: what a file that is made now is stamped with.

        Raises OSError, as where nothing may be written.
        """
        stamp = f"now-{unique_id()[:16]}"  # as evictors make and sweep them
        try:
            return self._store.put(stamp, b"").modified_s
        finally:
            self._store.remove(stamp)

    def quarantine(
        self, space: str, rules: Rules, first: BlockKey, seen: Entry, reason: str
    ) -> str | None:
        """Move a broken segment out of everybody's way; says what was done, None for nothing."""
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
        """Remove what a dead writer left; says what was done. ValueError: it is none."""
        if not isinstance(self._store, HasTemporaries):
            return None
        return "removed" if self._store.remove_temporary(name) else None

    def close(self) -> None:
        """Idempotent."""
        self._store.close()

    def _kept(self, space: str) -> set[str]:
        return {entry.name for entry in self._store.list(f"{space}/quarantine").entries}


THREADS: Final = 4


_AHEAD = 8
"""Segments a thread that may be under way or waiting to be told."""


_REPAIRABLE = frozenset({"segment", "checksum"})


_BY_HAND = "; repair leaves it: remove it by hand if nobody misses it"


class _Step(NamedTuple):
    entry: Entry
    place: FileKind
    verdict: Future[Verification] | None


def rules_for(spaces: Sequence[FoundSpace], secrets: Secrets) -> dict[str, Rules]:
    """How to verify each key space that has a manifest.

    Raises InvalidSettings where one needs a secret that was not given.
    """
    rules = {}
    for space in spaces:
        if space.manifest is None:
            continue
        checksum = secrets.fitting(space.manifest)
        if checksum is None:
            raise InvalidSettings(
                f"{space.name} was written with a secret that was not given; name its file "
                "(shared.key_file) with --key-file, or other key spaces with --space"
            )
        rules[space.name] = rules_of(space.manifest, checksum)
    return rules


class StoreCheck:
    """One check of one store. For one thread; it starts threads of its own while it runs."""

    def __init__(
        self,
        view: View,
        places: StoreLayout,
        rules: Mapping[str, Rules],
        report: CheckReport,
        *,
        now_s: float,
        pace: Throttle | None = None,
        repairs: Repairs | None = None,
        skipped: Sequence[str] = (),
        threads: int = THREADS,
    ) -> None:
        """`now_s`: on the store's clock. `skipped`: top folders known to be something else."""
        self._view = view
        self._places = places
        self._rules = rules
        self._report = report
        self._now_s = now_s
        self._pace = pace or Throttle()
        self._repairs = repairs
        self._skipped = frozenset(skipped)
        self._threads = threads

    def run(self, after: str = "") -> Iterator[str]:
        """Look at everything behind `after`; gives the position of each file as it is done.

        The report is up to date with each. Whoever stops asking stops the check; once `pace`
        is stopped this raises Stopped. Raises OSError where the store does not answer.
        """
        steps: deque[_Step] = deque()
        with Workers(self._threads, "kvtier-fsck", self._pace) as workers:
            try:
                walk = self._view.walk("", self._places.looks_into, self._refused, after)
                for entry in walk:
                    steps.append(self._begin(workers, entry))
                    if len(steps) > self._threads * _AHEAD:
                        yield self._end(workers, steps)
                while steps:
                    yield self._end(workers, steps)
            finally:
                if steps:  # called off: what is under way ends soon, the rest never begins
                    self._pace.stop()
                for step in steps:
                    if step.verdict is not None:
                        step.verdict.cancel()
        self._report.complete = True

    def _begin(self, workers: Workers, entry: Entry) -> _Step:
        place = self._places.of(entry.name)
        verdict = None
        space, _, name = entry.name.partition("/")
        if place is FileKind.SEGMENT and entry.is_file and space in self._rules:
            first = parse_segment_name(name)
            rules = self._rules[space]
            look = partial(verify_twice, self._view, entry.name, rules, first, self._pace)
            verdict = workers.submit(look)
        return _Step(entry, place, verdict)

    def _end(self, workers: Workers, steps: deque[_Step]) -> str:
        """Take in what was found first; returns the position."""
        entry, place, verdict = steps[0]
        if verdict is not None:
            self._judge(entry, workers.result(verdict))
        elif place is FileKind.UNKNOWN:
            if not entry.is_folder and self._places.looks_into(entry.name):
                self._tell(entry, "irregular", f"a {entry.what}, not a folder{_BY_HAND}")
            elif entry.name not in self._skipped:
                self._tell(entry, "unknown", f"a {entry.what} that is not kvtier's; left alone")
        elif not entry.is_file:
            self._tell(entry, "irregular", f"a {entry.what}, not a file{_BY_HAND}")
        elif place is FileKind.SEGMENT:
            self._report.unverified += 1
        elif place is FileKind.MISPLACED:
            self._tell(entry, "misplaced", f"no reader looks for it here{_BY_HAND}")
        elif place is FileKind.QUARANTINED:
            self._report.quarantined += 1
        elif place is FileKind.TEMPORARY:
            self._judge_temporary(entry)
        steps.popleft()
        return entry.position

    def _judge(self, entry: Entry, verdict: Verification) -> None:
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
        self._tell(entry, verdict.kind, verdict.reason, repaired)

    def _quarantine(self, entry: Entry, reason: str, repairs: Repairs) -> str | None:
        space, _, name = entry.name.partition("/")
        first = parse_segment_name(name) or BlockKey(b"")
        try:
            return repairs.quarantine(space, self._rules[space], first, entry, reason)
        except OSError as error:
            return _failed(error)

    def _judge_temporary(self, entry: Entry) -> None:
        age_s = self._now_s - entry.stat.modified_s
        if age_s <= STALE_S:
            return
        repaired = None
        if self._repairs is not None:
            try:
                repaired = self._repairs.remove_temporary(entry.name)
            except (OSError, ValueError) as error:
                repaired = _failed(error)
        reason = f"{entry.stat.size} bytes that nobody has written to for {age_s / 3600:.0f} h"
        self._tell(entry, "temporary", reason, repaired)

    def _refused(self, name: str, error: OSError) -> None:
        reason = f"this folder cannot be listed: {error.strerror}"
        finding = Finding(file=printable(name), kind="unreadable", reason=reason)
        # The walk is ahead of what is taken in: a check that goes on may come here again.
        if finding not in self._report.problems:
            self._report.add(finding)

    def _tell(self, entry: Entry, kind: str, reason: str, repaired: str | None = None) -> None:
        file = printable(entry.name)
        self._report.add(Finding(file=file, kind=kind, reason=reason, repaired=repaired))


def _failed(error: Exception) -> str:
    """Said where a repair should be; what was to be repaired is told all the same."""
    return f"not repaired: {error}"
