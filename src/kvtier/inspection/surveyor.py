"""Making a survey: one walk over all names, no block is read.

How many blocks a segment has follows from its length. Only the headers of the segments that
are read most are opened, and what lies in quarantine is verified again to tell why it is there.

Invariants: nothing is changed; every file is counted once; what cannot be read is told and
stops nothing.
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
_SOUND = "it is sound: what was wrong was not in the file"
_NO_SECRET = "written with a secret: name its file with --key-file to learn why"


class _SpaceTally:
    """One key space while its files come by."""

    def __init__(self, found: FoundSpace, rules: Rules | None) -> None:
        self.found = found
        self.rules = rules
        self.pile = FileTally()
        self.blocks = 0
        self.odd_lengths = 0
        self.journals: list[Entry] = []
        self.summaries = 0
        self.quarantined: list[QuarantinedFile] = []


class Surveyor:
    """Makes one survey. For one thread."""

    def __init__(self, view: View, secrets: Secrets, tell: Callable[[str, float], None]) -> None:
        """`tell` hears the name of each file, and an estimate of how much is done, 0 to 1."""
        self._view = view
        self._secrets = secrets
        self._tell = tell
        self._temporaries = FileTally()
        self._leases = 0
        self._unknown_found = 0
        self._unknown: list[OtherFile] = []
        self._unreadable_found = 0
        self._unreadable: list[OtherFile] = []

    def survey(self, *, now_s: float, wanted: Sequence[str] = (), top: int = 10) -> Survey:
        """All of it. `wanted`: names of key spaces, none for all; `top`: chains a key space.

        Raises InvalidSettings as `find_spaces` does, and OSError where the store does not answer.
        Costs a call a file; in a bucket a request a thousand.
        """
        spaces = find_spaces(self._view, wanted)
        foreign = {} if wanted else find_foreign(self._view)
        gathered = {found.name: _SpaceTally(found, self._rules(found)) for found in spaces}
        places = StoreLayout(gathered)
        known = {name for names in foreign.values() for name in names}
        for entry in self._view.walk("", places.looks_into, self._refused):
            self._tell(entry.name, places.share_done(entry.name))
            if entry.name not in known:
                self._take(entry, places.of(entry.name), gathered)
        trees = [
            survey_tree(self._view, base, names, self._refused, lambda name: self._tell(name, 1))
            for base, names in foreign.items()
        ]
        return Survey(
            path=printable(self._view.place),
            now_s=now_s,
            file_system=self._file_system(),
            spaces=[self._space(gathering, top) for gathering in gathered.values()],
            differing=differing(spaces),
            foreign=trees,
            temporaries=self._temporaries.bulk(),
            leases=self._leases,
            unknown_found=0 if wanted else self._unknown_found,
            unknown=[] if wanted else self._unknown,
            unreadable_found=self._unreadable_found,
            unreadable=self._unreadable,
        )

    def _rules(self, found: FoundSpace) -> Rules | None:
        if found.manifest is None:
            return None
        checksum = self._secrets.fitting(found.manifest)
        return None if checksum is None else rules_of(found.manifest, checksum)

    def _take(self, entry: Entry, place: FileKind, gathered: dict[str, _SpaceTally]) -> None:
        space = entry.name.partition("/")[0]
        if place in (FileKind.UNKNOWN, FileKind.MISPLACED) or not entry.is_file:
            self._unknown_found += 1
            if len(self._unknown) < UNKNOWN_KEPT:
                self._unknown.append(OtherFile(name=printable(entry.name), what=entry.what))
        elif place is FileKind.TEMPORARY:
            self._temporaries.add(entry)
        elif place is FileKind.LEASE:
            self._leases += 1
        elif place is FileKind.SEGMENT:
            _take_segment(entry, gathered[space])
        elif place is FileKind.JOURNAL:
            gathered[space].journals.append(entry)
        elif place is FileKind.SUMMARY:
            gathered[space].summaries += 1
        elif place is FileKind.QUARANTINED:
            self._take_quarantined(entry, gathered[space])

    def _take_quarantined(self, entry: Entry, space: _SpaceTally) -> None:
        if len(space.quarantined) == QUARANTINED_KEPT:
            return
        if space.rules is not None:
            verdict = verify(self._view, entry.name, space.rules, None, Throttle())
            reason = verdict.reason if isinstance(verdict, BadSegment) else _SOUND
        else:
            reason = _NO_SECRET if space.found.is_keyed else "no manifest to parse_space it by"
        space.quarantined.append(
            QuarantinedFile(
                file=printable(entry.name),
                bytes=entry.stat.size,
                modified_s=entry.stat.modified_s,
                reason=reason,
            )
        )

    def _space(self, gathering: _SpaceTally, top: int) -> SpaceSurvey:
        found = gathering.found
        space = None if found.manifest is None else found.manifest.space
        return SpaceSurvey(
            name=found.name,
            keyed=found.is_keyed,
            mistake=found.mistake,
            space=space,
            segments=gathering.pile.bulk(),
            blocks=None if space is None else gathering.blocks,
            odd_lengths=gathering.odd_lengths,
            journals=len(gathering.journals),
            summaries=gathering.summaries,
            quarantined=gathering.quarantined,
            hottest=self._hottest(gathering, space, top),
        )

    def _hottest(self, gathering: _SpaceTally, space: KeySpace | None, top: int) -> list[Chain]:
        rules = gathering.rules
        if space is None or rules is None or not top:
            return []
        name = gathering.found.name
        heat = ReadHistory(self._view, name, self._refused, lambda name: self._tell(name, 1))
        return heat.chains(gathering.journals, rules, space, top)

    def _file_system(self) -> Capacity | None:
        try:
            return self._view.file_system()
        except OSError:
            return None

    def _refused(self, name: str, error: OSError) -> None:
        self._unreadable_found += 1
        if len(self._unreadable) < UNREADABLE_KEPT:
            reason = error.strerror or str(error)
            self._unreadable.append(OtherFile(name=printable(name), what=reason))


def differing(spaces: Sequence[FoundSpace]) -> list[SpaceDifferences]:
    """For each model with several key spaces: which fields keep them apart."""
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


def _take_segment(entry: Entry, space: _SpaceTally) -> None:
    space.pile.add(entry)
    first = parse_segment_name(entry.name.partition("/")[2])
    manifest = space.found.manifest
    if manifest is None or first is None:
        return
    blocks = blocks_in(entry.stat.size, len(first), manifest.space.block_bytes)
    if blocks is None:
        space.odd_lengths += 1
    else:
        space.blocks += blocks
