"""One run of `kvtier fsck`: chooses what to check, resumes an earlier run, saves the position.

The position and the report so far are saved as a cursor. It is sealed, because many may be able to
write where it is kept, and a resumed check skips everything before the position. With a secret,
only its owner can make a cursor; without one the seal detects accidental damage.

Invariants: however a run ends, the cursor covers exactly what the report counts. A run that
reaches the end leaves no cursor. A cursor that is damaged, has another format or belongs to a
different check is ignored.
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
SAVE_EVERY_S: Final = 10.0
"""Time between two saves of the cursor."""


class Cursor(msgspec.Struct, frozen=True, kw_only=True):
    """The position of an interrupted check, and its report up to there."""

    format: int = FORMAT
    store: str
    """`View.identity` of the store."""
    spaces: tuple[str, ...]
    """For each key space its name, and the checksums according to its manifest."""
    repairs: bool
    after: str
    """A position in the walk; everything up to it was checked."""
    report: CheckReport

    def is_for_same_check(self, other: "Cursor") -> bool:
        """Return True if both cursors belong to the same check."""
        return all(
            getattr(self, name) == getattr(other, name)
            for name in ("format", "store", "spaces", "repairs")
        )


class _Sealed(msgspec.Struct, frozen=True):
    seal: str
    cursor: msgspec.Raw


class CursorKeeper:
    """Reads and writes a sealed cursor in a state file. Methods except `load` raise OSError."""

    def __init__(self, file: StateFile, sealer: Checksum) -> None:
        self.where = file.where
        self._file = file
        self._sealer = sealer

    def load(self) -> Cursor | None:
        """Return the saved cursor; None if there is none with a valid seal."""
        try:
            content = self._file.read()
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
        """Return True if `save` would overwrite nothing, or only a cursor."""
        content = self._file.read()
        if not content:
            return True
        try:
            msgspec.json.decode(content, type=_Sealed)
        except _UNREADABLE:
            return False
        return True

    def save(self, cursor: Cursor) -> None:
        """Replace the saved cursor."""
        raw = msgspec.json.encode(cursor)
        self._file.write(msgspec.json.encode(_Sealed(self._seal(raw).decode(), msgspec.Raw(raw))))

    def remove(self) -> None:
        """Remove the saved cursor."""
        self._file.remove()

    def _seal(self, raw: bytes) -> bytes:
        return self._sealer.header(b"kvtier fsck cursor\n" + raw).hex().encode()


class CheckOptions(NamedTuple):
    """The options of a check, as the user gave them."""

    spaces: Sequence[str] = ()
    """Names of the key spaces to check; empty: all."""
    key_files: Sequence[Path] = ()
    cursor_path: Path | None = None
    """Where to save the cursor; None: in the store."""
    repair: bool = False
    from_start: bool = False
    threads: int = THREADS


class CheckObserver:
    """A base class for observers of a run; its methods do nothing."""

    def resumed(self, after: str, started_s: float) -> None:
        """Note that this run resumes an earlier one after the position `after`."""

    def warned(self, text: str) -> None:
        """Note a warning, which does not stop the check."""

    def advanced(self, report: CheckReport, share: float) -> None:
        """Note that one more file is done, and an estimated `share` of the store, 0 to 1."""


class _CheckedStore(NamedTuple):
    """The parts of a store that a run checks, and what it needs for that."""

    view: View
    spaces: list[FoundSpace]
    foreign: dict[str, list[str]]
    rules: dict[str, Rules]
    secrets: Secrets
    skipped: list[str]


def check_store(
    place: str,
    options: CheckOptions,
    throttle: Throttle,
    observer: CheckObserver,
    clock: Clock | None = None,
) -> CheckReport:
    """Check a folder or bucket until the end, or until `throttle` is stopped.

    A report of a stopped check is not `complete`. Raises InvalidSettings if there is nothing to
    check, and if the storage stops answering. Reads the whole store once.
    """
    view = open_view(place)
    try:
        return check_view(view, options, throttle, observer, clock)
    finally:
        view.close()


def check_view(
    view: View,
    options: CheckOptions,
    throttle: Throttle,
    observer: CheckObserver,
    clock: Clock | None = None,
) -> CheckReport:
    """Check an open view as `check_store` does."""
    repairs = None
    try:
        subject = _subject(view, options)
        repairs = Repairs(view.open_store()) if options.repair else None
        return _run(subject, options, throttle, observer, repairs, clock or MonotonicClock())
    except OSError as error:
        raise InvalidSettings(
            f"{view.place} cannot be checked: {error.strerror or error}; fix that, then run the "
            "same command again to resume"
        ) from error
    finally:
        if repairs is not None:
            repairs.close()


def _subject(view: View, options: CheckOptions) -> _CheckedStore:
    secrets = Secrets(options.key_files)
    spaces = find_spaces(view, options.spaces)
    foreign = {} if options.spaces else find_foreign(view)
    if not spaces:
        what = "no key space; is it mounted?"
        if foreign:
            what = f"only trees of other systems ({', '.join(foreign)}): {UNVERIFIABLE}"
        raise InvalidSettings(f"{view.place} holds {what}")
    if options.spaces:
        skipped = [entry.name for entry in view.entries()]
    else:
        skipped = [name for names in foreign.values() for name in names]
    rules = rules_for(spaces, secrets)
    return _CheckedStore(view, spaces, foreign, rules, secrets, skipped)


def _run(
    subject: _CheckedStore,
    options: CheckOptions,
    throttle: Throttle,
    observer: CheckObserver,
    repairs: Repairs | None,
    clock: Clock,
) -> CheckReport:
    saver = _CursorSaver(subject, options, observer)
    report, after = saver.begin()
    layout = StoreLayout(space.name for space in subject.spaces)
    check = StoreCheck(
        subject.view,
        layout,
        subject.rules,
        report,
        now_s=repairs.now_s() if repairs else wall_s(),
        throttle=throttle,
        repairs=repairs,
        skipped=subject.skipped,
        threads=options.threads,
    )
    due_s = clock.now_s() + SAVE_EVERY_S
    try:
        for after in check.run(after):  # noqa: B020 # the position after which it may be resumed
            observer.advanced(report, layout.share_done(after))
            if throttle.stopped:
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
    """Loads the cursor at the start of a run, and saves it during the run."""

    def __init__(
        self, subject: _CheckedStore, options: CheckOptions, observer: CheckObserver
    ) -> None:
        view, named = subject.view, options.cursor_path
        self._is_named = named is not None
        file = view.state_file() if named is None else LocalStateFile(named)
        self._keeper = CursorKeeper(file, subject.secrets.sealer)
        self._observer = observer
        self._from_start = options.from_start
        self._has_warned = False
        self._fresh = Cursor(
            store=view.identity,
            spaces=tuple(_state(space) for space in subject.spaces),
            repairs=options.repair,
            after="",
            report=_fresh_report(subject),
        )

    def begin(self) -> tuple[CheckReport, str]:
        """Return the report so far, and the position after which to resume.

        Raises InvalidSettings if the file given by the user cannot be written, or contains
        anything but a cursor.
        """
        if self._is_named:
            self._check_named()
        found = None if self._from_start else self._keeper.load()
        if found is not None and found.is_for_same_check(self._fresh):
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
                f"--resume: {where} is not the position of a check, and would be overwritten; name "
                "another file, or remove it"
            )

    def save(self, report: CheckReport, after: str) -> bool:
        """Save the position; return False if the file cannot be written now.

        The check continues without it, and the next save tries again.
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
                    f"a later run cannot resume this check: {self._keeper.where} cannot be written "
                    f"({error.strerror}); name another file with --resume"
                )
            return False
        return True

    def end(self) -> None:
        """Remove the cursor after a complete check."""
        try:
            self._keeper.remove()
        except OSError as error:
            self._observer.warned(f"{self._keeper.where} cannot be removed ({error.strerror})")


def _state(space: FoundSpace) -> str:
    """Return a string that changes if the key space has to be verified differently."""
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
