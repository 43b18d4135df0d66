"""Verifying a whole store: manifests, names, headers, lengths, every block's checksum.

The order is that of names, and the walk goes on behind any position it gave. Segments are
verified by several threads; what they found is taken in the order of the walk, so that a
position stands for everything before it.

Invariants: nothing is changed without `repairs`; what others do to the store meanwhile is no
problem of the store; a file that cannot be read is a problem and never an exception.
"""

import hmac
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

import msgspec

from kvtier.blocks.checksum import Checksum
from kvtier.clock import Clock, MonotonicClock, wall_s
from kvtier.errors import InvalidSettings
from kvtier.inspection.foreign import UNVERIFIABLE, find_foreign
from kvtier.inspection.opening import open_view
from kvtier.inspection.report import CheckReport, Finding
from kvtier.inspection.segments import Rules
from kvtier.inspection.spaces import FoundSpace, Secrets, StoreLayout, find_spaces
from kvtier.inspection.state_file import LocalStateFile, StateFile
from kvtier.inspection.store_check import THREADS, Repairs, StoreCheck, rules_for
from kvtier.inspection.view import View, printable
from kvtier.inspection.workers import Stopped, Throttle

FORMAT: Final = 2


_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Cursor(msgspec.Struct, frozen=True, kw_only=True):
    """Where to go on, and what was found until there."""

    format: int = FORMAT
    store: str
    """Identity of what is checked: `View.identity`."""
    spaces: tuple[str, ...]
    """What is checked: name of each key space, and what its manifest says of checksums."""
    repairs: bool
    after: str
    """A position in the walk; all before it was looked at."""
    report: CheckReport

    def is_of(self, other: "Cursor") -> bool:
        """Whether both are of the same check."""
        return all(
            getattr(self, name) == getattr(other, name)
            for name in ("format", "store", "spaces", "repairs")
        )


class _Sealed(msgspec.Struct, frozen=True):
    seal: str
    cursor: msgspec.Raw


class CursorKeeper:
    """Keeps a cursor in a note. Every method but `load` raises OSError."""

    def __init__(self, note: StateFile, sealer: Checksum) -> None:
        self.where = note.where
        self._note = note
        self._sealer = sealer

    def load(self) -> Cursor | None:
        """What was saved; None where there is nothing that can be trusted."""
        try:
            content = self._note.read()
            if content is None:
                return None
            sealed = msgspec.json.decode(content, type=_Sealed)
            if not hmac.compare_digest(sealed.seal.encode(), self._seal(bytes(sealed.cursor))):
                return None
            cursor = msgspec.json.decode(sealed.cursor, type=Cursor)
        except (OSError, *_UNREADABLE):
            return None
        return cursor if cursor.format == FORMAT else None

    def is_free(self) -> bool:
        """Whether nothing would be lost by `save`: there is nothing, or a cursor of any kind."""
        content = self._note.read()
        if not content:
            return True
        try:
            msgspec.json.decode(content, type=_Sealed)
        except _UNREADABLE:
            return False
        return True

    def save(self, cursor: Cursor) -> None:
        """Replace what is there."""
        raw = msgspec.json.encode(cursor)
        self._note.write(msgspec.json.encode(_Sealed(self._seal(raw).decode(), msgspec.Raw(raw))))

    def remove(self) -> None:
        """The check is done."""
        self._note.remove()

    def _seal(self, raw: bytes) -> bytes:
        return self._sealer.header(b"kvtier fsck cursor\n" + raw).hex().encode()


SAVE_EVERY_S: Final = 10.0


class CheckOptions(NamedTuple):
    """What a person asked for."""

    spaces: Sequence[str] = ()
    """Names of key spaces; none: all."""
    key_files: Sequence[Path] = ()
    cursor_path: Path | None = None
    """None: in the store."""
    repair: bool = False
    from_start: bool = False
    threads: int = THREADS


class CheckObserver:
    """Who watches a run. This one does not look; override what is of interest."""

    def resumed(self, after: str, started_s: float) -> None:
        """An earlier run's work is not done again."""

    def warned(self, text: str) -> None:
        """Something that does not stop the check."""

    def advanced(self, report: CheckReport, share: float) -> None:
        """One more file is done; `share` of the store, an estimate."""


class _CheckedStore(NamedTuple):
    """What is checked."""

    view: View
    spaces: list[FoundSpace]
    foreign: dict[str, list[str]]
    rules: dict[str, Rules]
    secrets: Secrets
    skipped: list[str]


def check_store(
    place: str,
    wish: CheckOptions,
    pace: Throttle,
    observer: CheckObserver,
    clock: Clock | None = None,
) -> CheckReport:
    """StoreCheck until the end, or until `pace` is stopped: then the report is not complete.

    `place`: a folder, or a bucket's URL. Raises InvalidSettings where there is nothing that
    could be checked, and where the storage does not answer any more. Blocks for as long as it
    takes to read the store once.
    """
    view = open_view(place)
    try:
        return check_view(view, wish, pace, observer, clock)
    finally:
        view.close()


def check_view(
    view: View,
    wish: CheckOptions,
    pace: Throttle,
    observer: CheckObserver,
    clock: Clock | None = None,
) -> CheckReport:
    """As `check_store`, of what is open already."""
    repairs = None
    try:
        subject = _subject(view, wish)
        repairs = Repairs(view.open_store()) if wish.repair else None
        return _run(subject, wish, pace, observer, repairs, clock or MonotonicClock())
    except OSError as error:
        raise InvalidSettings(
            f"{view.place} cannot be checked: {error.strerror or error}; mend that and run the "
            "same again, it goes on where it stopped"
        ) from error
    finally:
        if repairs is not None:
            repairs.close()


def _subject(view: View, wish: CheckOptions) -> _CheckedStore:
    secrets = Secrets(wish.key_files)
    spaces = find_spaces(view, wish.spaces)
    foreign = {} if wish.spaces else find_foreign(view)
    if not spaces:
        what = "no key space; is it mounted?"
        if foreign:
            what = f"only trees of other systems ({', '.join(foreign)}): {UNVERIFIABLE}"
        raise InvalidSettings(f"{view.place} holds {what}")
    if wish.spaces:
        skipped = [entry.name for entry in view.entries()]
    else:
        skipped = [name for names in foreign.values() for name in names]
    rules = rules_for(spaces, secrets)
    return _CheckedStore(view, spaces, foreign, rules, secrets, skipped)


def _run(
    subject: _CheckedStore,
    wish: CheckOptions,
    pace: Throttle,
    observer: CheckObserver,
    repairs: Repairs | None,
    clock: Clock,
) -> CheckReport:
    saver = _CursorSaver(subject, wish, observer)
    report, after = saver.begin()
    places = StoreLayout(space.name for space in subject.spaces)
    check = StoreCheck(
        subject.view,
        places,
        subject.rules,
        report,
        now_s=repairs.now_s() if repairs else wall_s(),
        pace=pace,
        repairs=repairs,
        skipped=subject.skipped,
        threads=wish.threads,
    )
    due_s = clock.now_s() + SAVE_EVERY_S
    try:
        for after in check.run(after):  # noqa: B020 # where it stands is where it went on
            observer.advanced(report, places.share_done(after))
            if pace.stopped:
                return report
            if clock.now_s() >= due_s:
                saver.save(report, after)
                due_s = clock.now_s() + SAVE_EVERY_S
    except Stopped:
        return report
    finally:
        if report.complete:
            saver.end()
        else:
            saver.save(report, after)
    return report


class _CursorSaver:
    """Keeps the cursor of one run."""

    def __init__(self, subject: _CheckedStore, wish: CheckOptions, observer: CheckObserver) -> None:
        view, named = subject.view, wish.cursor_path
        self._is_named = named is not None
        note = view.note() if named is None else LocalStateFile(named)
        self._keeper = CursorKeeper(note, subject.secrets.strongest)
        self._observer = observer
        self._from_start = wish.from_start
        self._has_warned = False
        self._fresh = Cursor(
            store=view.identity,
            spaces=tuple(_state(space) for space in subject.spaces),
            repairs=wish.repair,
            after="",
            report=_fresh_report(subject),
        )

    def begin(self) -> tuple[CheckReport, str]:
        """The report so far, and the position to go on behind.

        Raises InvalidSettings where the file that a person named cannot be written, or is
        something else that would be lost.
        """
        if self._is_named:
            self._check_named()
        found = None if self._from_start else self._keeper.load()
        if found is not None and found.is_of(self._fresh):
            after = os.fsdecode(unquote_to_bytes(found.after))
            found.report.resumed_after = printable(after)
            self._observer.resumed(printable(after), found.report.started_s)
            return found.report, after
        if not self.save(self._fresh.report, "") and self._is_named:
            raise InvalidSettings(
                f"--resume: {self._keeper.where} cannot be written; name another file"
            )
        return self._fresh.report, ""

    def _check_named(self) -> None:
        where = self._keeper.where
        try:
            is_free = self._keeper.is_free()
        except OSError as error:
            raise InvalidSettings(
                f"--resume: {where} cannot be read: {error.strerror}; name another file"
            ) from error
        if not is_free:
            raise InvalidSettings(
                f"--resume: {where} is not where a check left off, and would be lost; name "
                "another file, or remove it"
            )

    def save(self, report: CheckReport, after: str) -> bool:
        """StateFile where the check is; False where the place cannot be written to now.

        That costs the resumption only. It is tried again the next time.
        """
        fresh = self._fresh
        cursor = Cursor(
            store=fresh.store,
            spaces=fresh.spaces,
            repairs=fresh.repairs,
            after=quote_from_bytes(os.fsencode(after)),
            report=report,
        )
        try:
            self._keeper.save(cursor)
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                self._observer.warned(
                    f"a later run cannot go on here: {self._keeper.where} cannot be written "
                    f"({error.strerror}); name a file with --resume, if it stays so"
                )
            return False
        return True

    def end(self) -> None:
        """Nothing is left to go on with."""
        try:
            self._keeper.remove()
        except OSError as error:
            self._observer.warned(f"{self._keeper.where} cannot be removed ({error.strerror})")


def _state(space: FoundSpace) -> str:
    """Changes when what is checked, or how, is not the same any more."""
    if space.manifest is None:
        return f"{space.name} {space.mistake}"
    return f"{space.name} {space.manifest.algorithm} {space.manifest.witness}"


def _fresh_report(subject: _CheckedStore) -> CheckReport:
    report = CheckReport(
        path=printable(subject.view.place),
        spaces=[space.name for space in subject.spaces],
        started_s=wall_s(),
    )
    for space in subject.spaces:
        if space.mistake is not None:
            file = f"{space.name}/manifest.json"
            report.add(Finding(file=file, kind="manifest", reason=printable(space.mistake)))
    for base in subject.foreign:
        report.add(Finding(file=printable(base), kind="foreign", reason=UNVERIFIABLE))
    return report
