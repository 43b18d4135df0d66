"""How far a check got, kept in a file, so that a later run goes on there.

Why sealed: the file may lie where many can write, and what it says is left out of the check.
With a secret only its owner can make one; without one a seal finds accidents.

Invariants: the file is replaced whole; one that is damaged, of another format, or of a check of
something else is as good as none.
"""

import hmac
import os
from pathlib import Path
from typing import Final

import msgspec

from kvtier.blocks.checksum import Checksum
from kvtier.inspection.folder import read_whole
from kvtier.inspection.places import CURSOR_NAME
from kvtier.inspection.report import Report
from kvtier.tiers.shared.names import TemporaryNames

FORMAT: Final = 1
_BYTES_MAX = 64 << 20


class Cursor(msgspec.Struct, frozen=True, kw_only=True):
    """Where to go on, and what was found until there."""

    format: int = FORMAT
    device: int
    inode: int
    """Of the store's folder."""
    spaces: tuple[str, ...]
    """Digests of the key spaces that are checked."""
    repairs: bool
    after: str
    """A position in the walk; all before it was looked at."""
    report: Report

    def is_of(self, other: "Cursor") -> bool:
        """Whether both are of the same check."""
        return all(
            getattr(self, name) == getattr(other, name)
            for name in ("format", "device", "inode", "spaces", "repairs")
        )


class _Sealed(msgspec.Struct, frozen=True):
    seal: str
    cursor: msgspec.Raw


class CursorFile:
    """One file with a cursor. Every method but `load` raises OSError."""

    def __init__(self, path: Path, sealer: Checksum) -> None:
        self.path = path
        self._sealer = sealer

    @classmethod
    def within(cls, folder: Path, sealer: Checksum) -> "CursorFile":
        """Where it lies if nobody names another place."""
        return cls(folder / CURSOR_NAME, sealer)

    def load(self) -> Cursor | None:
        """What was saved; None where there is nothing that can be trusted."""
        try:
            sealed = msgspec.json.decode(self._read(), type=_Sealed)
            if not hmac.compare_digest(sealed.seal.encode(), self._seal(bytes(sealed.cursor))):
                return None
            cursor = msgspec.json.decode(sealed.cursor, type=Cursor)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        return cursor if cursor.format == FORMAT else None

    def save(self, cursor: Cursor) -> None:
        """Replace what is there."""
        raw = msgspec.json.encode(cursor)
        sealed = _Sealed(self._seal(raw).decode(), msgspec.Raw(raw))
        temporary = self.path.with_name(TemporaryNames().next(""))
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb") as file:
                file.write(msgspec.json.encode(sealed))
            os.replace(temporary, self.path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def remove(self) -> None:
        """The check is done."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> bytes:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        return read_whole(os.open(self.path, flags), _BYTES_MAX)

    def _seal(self, raw: bytes) -> bytes:
        return self._sealer.header(b"kvtier fsck cursor\n" + raw).hex().encode()
