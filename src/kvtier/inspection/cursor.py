"""How far a check got, kept in a note, so that a later run goes on there.

Why sealed: the note may lie where many can write, and what it says is left out of the check.
With a secret only its owner can make one; without one a seal finds accidents.

Invariant: one that is damaged, of another format, or of a check of something else is as good as
none.
"""

import hmac
from typing import Final

import msgspec

from kvtier.blocks.checksum import Checksum
from kvtier.inspection.notes import Note
from kvtier.inspection.report import Report

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
    report: Report

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

    def __init__(self, note: Note, sealer: Checksum) -> None:
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
