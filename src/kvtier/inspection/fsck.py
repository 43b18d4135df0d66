"""Verifying a whole store: manifests, names, headers, lengths, every block's checksum.

The order is that of names, and the walk goes on behind any position it gave. Segments are
verified by several threads; what they found is taken in the order of the walk, so that a
position stands for everything before it.

Invariants: nothing is changed without `repairs`; what others do to the store meanwhile is no
problem of the store; a file that cannot be read is a problem and never an exception.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final, NamedTuple

from kvtier.blocks.key import BlockKey
from kvtier.errors import InvalidSettings
from kvtier.inspection.pace import Pace
from kvtier.inspection.places import Place, Places
from kvtier.inspection.repair import STALE_S, Repairs
from kvtier.inspection.report import Finding, Report
from kvtier.inspection.segments import Broken, Rules, Verdict, rules_of, verify_twice
from kvtier.inspection.spaces import FoundSpace, Secrets
from kvtier.inspection.view import Entry, View, printable
from kvtier.inspection.workers import Workers
from kvtier.tiers.shared.format import parse_segment_name

THREADS: Final = 4
_AHEAD = 8
"""Segments a thread that may be under way or waiting to be told."""
_REPAIRABLE = frozenset({"segment", "checksum"})
_BY_HAND = "; repair leaves it: remove it by hand if nobody misses it"


class _Step(NamedTuple):
    entry: Entry
    place: Place
    verdict: Future[Verdict] | None


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


class Check:
    """One check of one store. For one thread; it starts threads of its own while it runs."""

    def __init__(
        self,
        view: View,
        places: Places,
        rules: Mapping[str, Rules],
        report: Report,
        *,
        now_s: float,
        pace: Pace | None = None,
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
        self._pace = pace or Pace()
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
        if place is Place.SEGMENT and entry.is_file and space in self._rules:
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
        elif place is Place.UNKNOWN:
            if not entry.is_folder and self._places.looks_into(entry.name):
                self._tell(entry, "irregular", f"a {entry.what}, not a folder{_BY_HAND}")
            elif entry.name not in self._skipped:
                self._tell(entry, "unknown", f"a {entry.what} that is not kvtier's; left alone")
        elif not entry.is_file:
            self._tell(entry, "irregular", f"a {entry.what}, not a file{_BY_HAND}")
        elif place is Place.SEGMENT:
            self._report.unverified += 1
        elif place is Place.MISPLACED:
            self._tell(entry, "misplaced", f"no reader looks for it here{_BY_HAND}")
        elif place is Place.QUARANTINED:
            self._report.quarantined += 1
        elif place is Place.TEMPORARY:
            self._judge_temporary(entry)
        steps.popleft()
        return entry.position

    def _judge(self, entry: Entry, verdict: Verdict) -> None:
        report = self._report
        if verdict is None:
            report.vanished += 1
            return
        report.segments += 1
        if not isinstance(verdict, Broken):
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
