"""Putting a store in order: only what is known to be broken or abandoned is touched.

Invariants: a broken segment is moved to the quarantine, as a reader would do it, and only if it
still is the file that was looked at; an age is told by two times of the store's own clock;
nothing else is moved or removed.
"""

import os
from pathlib import Path
from typing import Final

from kvtier.blocks.key import BlockKey
from kvtier.inspection.folder import Entry
from kvtier.inspection.segments import Rules
from kvtier.tiers.shared.headers import Headers
from kvtier.tiers.shared.names import TemporaryNames
from kvtier.tiers.shared.posix import PosixStore
from kvtier.tiers.shared.walk import stat_of

STALE_S: Final = 3600.0
"""A temporary file that nobody has written to for that long has no writer any more."""


class Repairs:
    """What may be done to the store in a folder. Methods block and raise OSError. Close it."""

    def __init__(self, path: Path) -> None:
        """Raises InvalidSettings where the folder cannot be written to."""
        self._path = path
        self._store = PosixStore(path)

    def now_s(self) -> float:
        """The time on the store's clock: what a file that is made now is stamped with."""
        probe = self._path / TemporaryNames().next("")
        fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            return os.fstat(fd).st_mtime
        finally:
            os.close(fd)
            probe.unlink(missing_ok=True)

    def quarantine(
        self, space: str, rules: Rules, first: BlockKey, seen: Entry, reason: str
    ) -> str | None:
        """Move a broken segment out of everybody's way; says what was done, None for nothing."""
        headers = Headers(self._store, space, rules.checksum, rules.space_digest, rules.block_bytes)
        found = self._store.stat(seen.name)
        if found is None or found.version != stat_of(seen.status).version:
            return None
        headers.quarantine(first, reason)
        if not headers.quarantined:
            return None
        kept = self._store.list(f"{space}/quarantine").entries
        is_kept = any(first.hex() in entry.name for entry in kept)
        return "quarantined" if is_kept else "removed, the quarantine is full"

    def remove_temporary(self, name: str) -> str | None:
        """Remove what a dead writer left; says what was done."""
        return "removed" if self._store.remove_temporary(name) else None

    def close(self) -> None:
        """Idempotent."""
        self._store.close()
