"""What a shared folder holds: one walk over all names, no block is read.

How many blocks a segment has follows from its length. Only the headers of the segments that
are read most are opened, and what lies in quarantine is verified again to tell why it is there.

Invariants: nothing is changed; every file is counted once; what cannot be read is told and
stops nothing. Fields of format 1 are only ever added.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from kvtier.blocks.key import BlockKey, KeySpace
from kvtier.errors import Corrupt
from kvtier.inspection.folder import Entry, FileSystem, Folder, printable
from kvtier.inspection.foreign import ForeignTree, find_foreign, survey_tree
from kvtier.inspection.hottest import Chain, Reads
from kvtier.inspection.pace import Pace
from kvtier.inspection.pile import Bulk, Pile
from kvtier.inspection.places import Place, Places
from kvtier.inspection.segments import (
    Broken,
    Rules,
    blocks_in,
    read_header,
    rules_of,
    verify,
)
from kvtier.inspection.spaces import FoundSpace, Secrets, find_spaces
from kvtier.tiers.shared.format import Segment, parse_segment_name, segment_name

FORMAT: Final = 1
UNKNOWN_KEPT: Final = 1000
QUARANTINED_KEPT: Final = 64
_JOURNAL_BYTES_MAX = 16 << 20
_SOUND = "it is sound: what was wrong was not in the file"
_NO_SECRET = "written with a secret: name its file with --key-file to learn why"


class Quarantined(msgspec.Struct, frozen=True, kw_only=True):
    """A file that failed verification."""

    file: str
    bytes: int
    modified_s: float
    reason: str
    """What is wrong with it now."""


class SpaceSurvey(msgspec.Struct, frozen=True, kw_only=True):
    """One key space."""

    name: str
    keyed: bool
    """Whether a secret is needed to verify its blocks."""
    mistake: str | None
    """Why its manifest is of no use."""
    space: KeySpace | None
    """Every field of the identity; None where the manifest is of no use."""
    segments: Bulk
    blocks: int | None
    """In segments of a possible length; None without a manifest."""
    odd_lengths: int
    """Segments of a length that no number of blocks has: `kvtier fsck` tells more."""
    journals: int
    quarantined: list[Quarantined]
    hottest: list[Chain]


class Differing(msgspec.Struct, frozen=True, kw_only=True):
    """Why key spaces of one model are not one."""

    model: str
    spaces: list[str]
    fields: dict[str, dict[str, Any]]
    """Field -> key space -> its value, for the fields that are not the same in all."""


class Stranger(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is not kvtier's, or that the file system refused to show."""

    name: str
    what: str


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """What a shared folder holds."""

    format: int = FORMAT
    path: str
    now_s: float
    """When, on this host's clock. All other times are the store's."""
    file_system: FileSystem | None
    spaces: list[SpaceSurvey]
    differing: list[Differing]
    foreign: list[ForeignTree]
    temporaries: Bulk
    leases: int
    unknown_found: int
    unknown: list[Stranger]
    """The first of them; folders are not looked into."""
    unreadable: list[Stranger]


class _Gathering:
    """One key space while its files come by."""

    def __init__(self, found: FoundSpace, rules: Rules | None) -> None:
        self.found = found
        self.rules = rules
        self.pile = Pile()
        self.blocks = 0
        self.odd_lengths = 0
        self.journals = 0
        self.reads = Reads()
        self.quarantined: list[Quarantined] = []


class Surveyor:
    """Makes one survey. For one thread."""

    def __init__(
        self, folder: Folder, secrets: Secrets, tell: Callable[[str, float], None]
    ) -> None:
        """`tell` hears the name of each file, and an estimate of how much is done, 0 to 1."""
        self._folder = folder
        self._secrets = secrets
        self._tell = tell
        self._temporaries = Pile()
        self._leases = 0
        self._unknown_found = 0
        self._unknown: list[Stranger] = []
        self._unreadable: list[Stranger] = []

    def survey(self, *, now_s: float, wanted: Sequence[str] = (), top: int = 10) -> Survey:
        """All of it. `wanted`: names of key spaces, none for all; `top`: chains a key space.

        Raises InvalidSettings as `find_spaces` does. Costs a call a file.
        """
        spaces = find_spaces(self._folder, wanted)
        foreign = {} if wanted else find_foreign(self._folder)
        gathered = {found.name: _Gathering(found, self._rules(found)) for found in spaces}
        places = Places(gathered)
        known = {name for names in foreign.values() for name in names}
        for entry in self._folder.walk("", places.looks_into, self._refused):
            self._tell(entry.name, places.share_done(entry.name))
            if entry.name not in known:
                self._take(entry, places.of(entry.name), gathered)
        trees = [
            survey_tree(self._folder, base, names, self._refused, lambda name: self._tell(name, 1))
            for base, names in foreign.items()
        ]
        return Survey(
            path=printable(str(self._folder.path)),
            now_s=now_s,
            file_system=self._file_system(),
            spaces=[self._space(gathering, top) for gathering in gathered.values()],
            differing=differing(spaces),
            foreign=trees,
            temporaries=self._temporaries.bulk(),
            leases=self._leases,
            unknown_found=0 if wanted else self._unknown_found,
            unknown=[] if wanted else self._unknown,
            unreadable=self._unreadable,
        )

    def _rules(self, found: FoundSpace) -> Rules | None:
        if found.manifest is None:
            return None
        checksum = self._secrets.fitting(found.manifest)
        return None if checksum is None else rules_of(found.manifest, checksum)

    def _take(self, entry: Entry, place: Place, gathered: dict[str, _Gathering]) -> None:
        space = entry.name.partition("/")[0]
        if place in (Place.UNKNOWN, Place.MISPLACED) or not entry.is_file:
            self._unknown_found += 1
            if len(self._unknown) < UNKNOWN_KEPT:
                self._unknown.append(Stranger(name=printable(entry.name), what=entry.what))
        elif place is Place.TEMPORARY:
            self._temporaries.add(entry.status)
        elif place is Place.LEASE:
            self._leases += 1
        elif place is Place.SEGMENT:
            _take_segment(entry, gathered[space])
        elif place is Place.JOURNAL:
            self._take_journal(entry, gathered[space])
        elif place is Place.QUARANTINED:
            self._take_quarantined(entry, gathered[space])

    def _take_journal(self, entry: Entry, space: _Gathering) -> None:
        space.journals += 1
        try:
            content = self._folder.read(entry.name, _JOURNAL_BYTES_MAX)
        except OSError as error:
            self._refused(entry.name, error)
            return
        if content is not None:
            space.reads.add(content, entry.status.st_mtime)

    def _take_quarantined(self, entry: Entry, space: _Gathering) -> None:
        if len(space.quarantined) == QUARANTINED_KEPT:
            return
        if space.rules is not None:
            verdict = verify(self._folder, entry.name, space.rules, None, Pace())
            reason = verdict.reason if isinstance(verdict, Broken) else _SOUND
        else:
            reason = _NO_SECRET if space.found.is_keyed else "no manifest to judge it by"
        space.quarantined.append(
            Quarantined(
                file=printable(entry.name),
                bytes=entry.status.st_size,
                modified_s=entry.status.st_mtime,
                reason=reason,
            )
        )

    def _space(self, gathering: _Gathering, top: int) -> SpaceSurvey:
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
            journals=gathering.journals,
            quarantined=gathering.quarantined,
            hottest=self._hottest(gathering, space, top),
        )

    def _hottest(self, gathering: _Gathering, space: KeySpace | None, top: int) -> list[Chain]:
        rules = gathering.rules
        if space is None or rules is None:
            return []

        def load(first: BlockKey) -> Segment | None:
            name = f"{gathering.found.name}/{segment_name(first)}"
            self._tell(name, 1)
            try:
                return read_header(self._folder, name, rules, first)
            except (Corrupt, OSError):
                return None

        return gathering.reads.chains(load, space, top)

    def _file_system(self) -> FileSystem | None:
        try:
            return self._folder.file_system()
        except OSError:
            return None

    def _refused(self, name: str, error: OSError) -> None:
        reason = error.strerror or str(error)
        self._unreadable.append(Stranger(name=printable(name), what=reason))


def differing(spaces: Sequence[FoundSpace]) -> list[Differing]:
    """For each model with several key spaces: which fields keep them apart."""
    by_model: dict[str, dict[str, KeySpace]] = {}
    for found in spaces:
        if found.manifest is not None:
            space = found.manifest.space
            by_model.setdefault(space.model, {})[found.name] = space
    return [
        Differing(model=model, spaces=list(members), fields=_unequal(members))
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


def _take_segment(entry: Entry, space: _Gathering) -> None:
    space.pile.add(entry.status)
    first = parse_segment_name(entry.name.partition("/")[2])
    manifest = space.found.manifest
    if manifest is None or first is None:
        return
    blocks = blocks_in(entry.status.st_size, len(first), manifest.space.block_bytes)
    if blocks is None:
        space.odd_lengths += 1
    else:
        space.blocks += blocks
