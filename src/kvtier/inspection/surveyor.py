"""Makes a survey in one walk over all names, without reading blocks.

The number of blocks in a segment follows from its length. Only the headers of the most-read
segments are opened, and files in quarantine are verified again to say what is wrong with them.

Invariants: nothing is changed. Every file is counted once. A file or folder that cannot be read is
reported and does not stop the survey.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from kvtier.blocks.key import KeySpace
from kvtier.inspection.foreign import find_foreign, survey_tree
from kvtier.inspection.hottest import ReadHistory
from kvtier.inspection.segments import (
    BadSegment,
    Rules,
    blocks_in,
    rules_of,
    verify,
)
from kvtier.inspection.spaces import FileKind, FoundSpace, Secrets, StoreLayout, find_spaces
from kvtier.inspection.survey import (
    Chain,
    FileTally,
    OtherFile,
    QuarantinedFile,
    SpaceDifferences,
    SpaceSurvey,
    Survey,
)
from kvtier.inspection.view import Capacity, Entry, View, printable
from kvtier.inspection.workers import Throttle
from kvtier.tiers.shared.format import parse_segment_name

UNKNOWN_KEPT: Final = 1000
UNREADABLE_KEPT: Final = 1000
QUARANTINED_KEPT: Final = 64
_INTACT = "intact now: the error was not in the file"
_NO_SECRET = "written with a secret: give its file with --key-file to see the reason"


class _SpaceTally:
    """What the walk has found of one key space so far."""

    def __init__(self, found: FoundSpace, rules: Rules | None) -> None:
        self.found = found
        self.rules = rules
        self.files = FileTally()
        self.blocks = 0
        self.odd_lengths = 0
        self.journals: list[Entry] = []
        self.summaries = 0
        self.quarantined: list[QuarantinedFile] = []


class Surveyor:
    """Makes one survey. Used by one thread."""

    def __init__(self, view: View, secrets: Secrets, on_file: Callable[[str, float], None]) -> None:
        """Prepare a survey of `view`.

        `on_file` is called with the name of each file and the estimated share done, 0 to 1.
        """
        self._view = view
        self._secrets = secrets
        self._on_file = on_file
        self._temporaries = FileTally()
        self._leases = 0
        self._unknown_found = 0
        self._unknown: list[OtherFile] = []
        self._unreadable_found = 0
        self._unreadable: list[OtherFile] = []

    def survey(self, *, now_s: float, wanted: Sequence[str] = (), top: int = 10) -> Survey:
        """Make the survey of the key spaces `wanted` (default: all), each with `top` chains.

        Costs one system call per file; in a bucket one request per thousand. Raises
        InvalidSettings as `find_spaces` does, and OSError if the storage does not answer.
        """
        spaces = find_spaces(self._view, wanted)
        foreign = {} if wanted else find_foreign(self._view)
        tallies = {found.name: _SpaceTally(found, self._rules(found)) for found in spaces}
        layout = StoreLayout(tallies)
        known = {name for names in foreign.values() for name in names}
        for entry in self._view.walk("", layout.looks_into, self._on_unreadable):
            self._on_file(entry.name, layout.share_done(entry.name))
            if entry.name not in known:
                self._count(entry, layout.kind_of(entry.name), tallies)
        trees = [
            survey_tree(
                self._view, base, names, self._on_unreadable, lambda name: self._on_file(name, 1)
            )
            for base, names in foreign.items()
        ]
        return Survey(
            path=printable(self._view.place),
            now_s=now_s,
            file_system=self._file_system(),
            spaces=[self._space(tally, top) for tally in tallies.values()],
            differing=differing(spaces),
            foreign=trees,
            temporaries=self._temporaries.totals(),
            leases=self._leases,
            unknown_found=0 if wanted else self._unknown_found,
            unknown=[] if wanted else self._unknown,
            unreadable_found=self._unreadable_found,
            unreadable=self._unreadable,
        )

    def _rules(self, found: FoundSpace) -> Rules | None:
        if found.manifest is None:
            return None
        checksum = self._secrets.checksum_of(found.manifest)
        return None if checksum is None else rules_of(found.manifest, checksum)

    def _count(self, entry: Entry, kind: FileKind, tallies: dict[str, _SpaceTally]) -> None:
        space = entry.name.partition("/")[0]
        if kind in (FileKind.UNKNOWN, FileKind.MISPLACED) or not entry.is_file:
            self._unknown_found += 1
            if len(self._unknown) < UNKNOWN_KEPT:
                self._unknown.append(OtherFile(name=printable(entry.name), what=entry.what))
        elif kind is FileKind.TEMPORARY:
            self._temporaries.add(entry)
        elif kind is FileKind.LEASE:
            self._leases += 1
        elif kind is FileKind.SEGMENT:
            _count_segment(entry, tallies[space])
        elif kind is FileKind.JOURNAL:
            tallies[space].journals.append(entry)
        elif kind is FileKind.SUMMARY:
            tallies[space].summaries += 1
        elif kind is FileKind.QUARANTINED:
            self._examine_quarantined(entry, tallies[space])

    def _examine_quarantined(self, entry: Entry, space: _SpaceTally) -> None:
        if len(space.quarantined) == QUARANTINED_KEPT:
            return
        if space.rules is not None:
            verdict = verify(self._view, entry.name, space.rules, None, Throttle())
            reason = verdict.reason if isinstance(verdict, BadSegment) else _INTACT
        else:
            reason = _NO_SECRET if space.found.is_keyed else "no manifest to verify it with"
        space.quarantined.append(
            QuarantinedFile(
                file=printable(entry.name),
                bytes=entry.stat.size,
                modified_s=entry.stat.modified_s,
                reason=reason,
            )
        )

    def _space(self, tally: _SpaceTally, top: int) -> SpaceSurvey:
        found = tally.found
        space = None if found.manifest is None else found.manifest.space
        return SpaceSurvey(
            name=found.name,
            keyed=found.is_keyed,
            mistake=found.mistake,
            space=space,
            segments=tally.files.totals(),
            blocks=None if space is None else tally.blocks,
            odd_lengths=tally.odd_lengths,
            journals=len(tally.journals),
            summaries=tally.summaries,
            quarantined=tally.quarantined,
            hottest=self._hottest(tally, space, top),
        )

    def _hottest(self, tally: _SpaceTally, space: KeySpace | None, top: int) -> list[Chain]:
        rules = tally.rules
        if space is None or rules is None or not top:
            return []
        name = tally.found.name
        history = ReadHistory(
            self._view, name, self._on_unreadable, lambda name: self._on_file(name, 1)
        )
        return history.chains(tally.journals, rules, space, top)

    def _file_system(self) -> Capacity | None:
        try:
            return self._view.file_system()
        except OSError:
            return None

    def _on_unreadable(self, name: str, error: OSError) -> None:
        self._unreadable_found += 1
        if len(self._unreadable) < UNREADABLE_KEPT:
            reason = error.strerror or str(error)
            self._unreadable.append(OtherFile(name=printable(name), what=reason))


def differing(spaces: Sequence[FoundSpace]) -> list[SpaceDifferences]:
    """Return, for each model with several key spaces, the fields that keep them apart."""
    by_model: dict[str, dict[str, KeySpace]] = {}
    for found in spaces:
        if found.manifest is not None:
            space = found.manifest.space
            by_model.setdefault(space.model, {})[found.name] = space
    return [
        SpaceDifferences(model=model, spaces=list(members), fields=_unequal(members))
        for model, members in by_model.items()
        if len(members) > 1
    ]


def _unequal(members: dict[str, KeySpace]) -> dict[str, dict[str, Any]]:
    fields = {}
    for field in KeySpace.__struct_fields__:
        values = {name: getattr(space, field) for name, space in members.items()}
        if len(set(values.values())) > 1:
            fields[field] = values
    return fields


def _count_segment(entry: Entry, space: _SpaceTally) -> None:
    space.files.add(entry)
    first = parse_segment_name(entry.name.partition("/")[2])
    manifest = space.found.manifest
    if manifest is None or first is None:
        return
    blocks = blocks_in(entry.stat.size, len(first), manifest.space.block_bytes)
    if blocks is None:
        space.odd_lengths += 1
    else:
        space.blocks += blocks
