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
from kvtier.inspection.cursor import Cursor, CursorFile
from kvtier.inspection.folder import Folder, printable
from kvtier.inspection.foreign import UNVERIFIABLE, find_foreign
from kvtier.inspection.fsck import THREADS, Check, rules_for
from kvtier.inspection.pace import Pace, Stopped
from kvtier.inspection.places import Places
from kvtier.inspection.repair import Repairs
from kvtier.inspection.report import Finding, Report
from kvtier.inspection.segments import Rules
from kvtier.inspection.spaces import FoundSpace, Secrets, find_spaces

SAVE_EVERY_S: Final = 10.0


class Wish(NamedTuple):
    """What a person asked for."""

    spaces: Sequence[str] = ()
    """Names of key spaces; none: all."""
    key_files: Sequence[Path] = ()
    cursor_path: Path | None = None
    """None: in the folder."""
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

    folder: Folder
    spaces: list[FoundSpace]
    foreign: dict[str, list[str]]
    rules: dict[str, Rules]
    secrets: Secrets
    skipped: list[str]


def check_store(
    path: Path, wish: Wish, pace: Pace, observer: Observer, clock: Clock | None = None
) -> Report:
    """Check until the end, or until `pace` is stopped: then the report is not complete.

    Raises InvalidSettings where there is nothing that could be checked. Blocks for as long as
    it takes to read the store once.
    """
    folder = Folder(path)
    repairs = None
    try:
        subject = _subject(folder, wish)
        repairs = Repairs(path) if wish.repair else None
        return _run(subject, wish, pace, observer, repairs, clock or MonotonicClock())
    except OSError as error:
        raise InvalidSettings(f"{path} cannot be checked: {error}") from error
    finally:
        folder.close()
        if repairs is not None:
            repairs.close()


def _subject(folder: Folder, wish: Wish) -> _Subject:
    secrets = Secrets(wish.key_files)
    spaces = find_spaces(folder, wish.spaces)
    foreign = {} if wish.spaces else find_foreign(folder)
    if not spaces:
        what = "no key space; is it mounted?"
        if foreign:
            what = f"only trees of other systems ({', '.join(foreign)}): {UNVERIFIABLE}"
        raise InvalidSettings(f"{folder.path} holds {what}")
    if wish.spaces:
        skipped = [entry.name for entry in folder.entries()]
    else:
        skipped = [name for names in foreign.values() for name in names]
    rules = rules_for(spaces, secrets)
    return _Subject(folder, spaces, foreign, rules, secrets, skipped)


def _run(
    subject: _Subject,
    wish: Wish,
    pace: Pace,
    observer: Observer,
    repairs: Repairs | None,
    clock: Clock,
) -> Report:
    folder = subject.folder
    saver = _Saver(subject, wish, observer)
    report, after = saver.begin()
    places = Places(space.name for space in subject.spaces)
    check = Check(
        folder,
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
        folder = subject.folder
        sealer = subject.secrets.strongest
        self._is_named = wish.cursor_path is not None
        self._file = (
            CursorFile(wish.cursor_path, sealer)
            if wish.cursor_path is not None
            else CursorFile.within(folder.path, sealer)
        )
        self._observer = observer
        self._from_start = wish.from_start
        self._works = True
        status = os.stat(folder.path)
        self._fresh = Cursor(
            device=status.st_dev,
            inode=status.st_ino,
            spaces=tuple(_state(space) for space in subject.spaces),
            repairs=wish.repair,
            after="",
            report=_fresh_report(subject),
        )

    def begin(self) -> tuple[Report, str]:
        """The report so far, and the position to go on behind.

        Raises InvalidSettings where the file that a person named cannot be written.
        """
        found = None if self._from_start else self._file.load()
        if found is not None and found.is_of(self._fresh):
            after = os.fsdecode(unquote_to_bytes(found.after))
            found.report.resumed_after = printable(after)
            self._observer.resumed(printable(after), found.report.started_s)
            return found.report, after
        self.save(self._fresh.report, "")
        if self._is_named and not self._works:
            raise InvalidSettings(
                f"--resume: {self._file.path} cannot be written; name another file"
            )
        return self._fresh.report, ""

    def save(self, report: Report, after: str) -> None:
        """Note where the check is. A place that cannot be written to costs the resumption only."""
        fresh = self._fresh
        cursor = Cursor(
            device=fresh.device,
            inode=fresh.inode,
            spaces=fresh.spaces,
            repairs=fresh.repairs,
            after=quote_from_bytes(os.fsencode(after)),
            report=report,
        )
        if not self._works:
            return
        try:
            self._file.save(cursor)
        except OSError as error:
            self._works = False
            self._observer.warned(
                f"this check cannot go on later: {self._file.path} cannot be written "
                f"({error.strerror}); name a file with --resume"
            )

    def end(self) -> None:
        """Nothing is left to go on with."""
        try:
            self._file.remove()
        except OSError as error:
            self._observer.warned(f"{self._file.path} cannot be removed ({error.strerror})")


def _state(space: FoundSpace) -> str:
    """Changes when what is checked, or how, is not the same any more."""
    if space.manifest is None:
        return f"{space.name} {space.mistake}"
    return f"{space.name} {space.manifest.algorithm} {space.manifest.witness}"


def _fresh_report(subject: _Subject) -> Report:
    report = Report(
        path=printable(str(subject.folder.path)),
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
