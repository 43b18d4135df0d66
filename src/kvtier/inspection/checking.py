"""One run of a check from start to end: what to check, where to go on, when to note it.

Invariants: whatever ends a run, the cursor stands for exactly what the report counts; a run
that reached the end leaves no cursor.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

from kvtier.clock import Clock, MonotonicClock, wall_s
from kvtier.errors import InvalidSettings
from kvtier.inspection.cursor import Cursor, CursorKeeper
from kvtier.inspection.foreign import UNVERIFIABLE, find_foreign
from kvtier.inspection.fsck import THREADS, Check, rules_for
from kvtier.inspection.notes import FileNote
from kvtier.inspection.opening import open_view
from kvtier.inspection.pace import Pace, Stopped
from kvtier.inspection.places import Places
from kvtier.inspection.repair import Repairs
from kvtier.inspection.report import Finding, Report
from kvtier.inspection.segments import Rules
from kvtier.inspection.spaces import FoundSpace, Secrets, find_spaces
from kvtier.inspection.view import View, printable

SAVE_EVERY_S: Final = 10.0


class Wish(NamedTuple):
    """What a person asked for."""

    spaces: Sequence[str] = ()
    """Names of key spaces; none: all."""
    key_files: Sequence[Path] = ()
    cursor_path: Path | None = None
    """None: in the store."""
    repair: bool = False
    from_start: bool = False
    threads: int = THREADS


class Observer:
    """Who watches a run. This one does not look; override what is of interest."""

    def resumed(self, after: str, started_s: float) -> None:
        """An earlier run's work is not done again."""

    def warned(self, text: str) -> None:
        """Something that does not stop the check."""

    def advanced(self, report: Report, share: float) -> None:
        """One more file is done; `share` of the store, an estimate."""


class _Subject(NamedTuple):
    """What is checked."""

    view: View
    spaces: list[FoundSpace]
    foreign: dict[str, list[str]]
    rules: dict[str, Rules]
    secrets: Secrets
    skipped: list[str]


def check_store(
    place: str, wish: Wish, pace: Pace, observer: Observer, clock: Clock | None = None
) -> Report:
    """Check until the end, or until `pace` is stopped: then the report is not complete.

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
    view: View, wish: Wish, pace: Pace, observer: Observer, clock: Clock | None = None
) -> Report:
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


def _subject(view: View, wish: Wish) -> _Subject:
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
    return _Subject(view, spaces, foreign, rules, secrets, skipped)


def _run(
    subject: _Subject,
    wish: Wish,
    pace: Pace,
    observer: Observer,
    repairs: Repairs | None,
    clock: Clock,
) -> Report:
    saver = _Saver(subject, wish, observer)
    report, after = saver.begin()
    places = Places(space.name for space in subject.spaces)
    check = Check(
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


class _Saver:
    """Keeps the cursor of one run."""

    def __init__(self, subject: _Subject, wish: Wish, observer: Observer) -> None:
        view, named = subject.view, wish.cursor_path
        self._is_named = named is not None
        note = view.note() if named is None else FileNote(named)
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

    def begin(self) -> tuple[Report, str]:
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

    def save(self, report: Report, after: str) -> bool:
        """Note where the check is; False where the place cannot be written to now.

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


def _fresh_report(subject: _Subject) -> Report:
    report = Report(
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
