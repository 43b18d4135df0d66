"""Putting a store in order: only what is known to be broken or abandoned is touched.

Invariants: a broken segment is moved to the quarantine, as a reader would do it, and only if it
still is the file that was looked at; an age is told by two times of the store's own clock;
nothing else is moved or removed.
"""

from typing import Final

from kvtier.blocks.key import BlockKey
from kvtier.clock import unique_id
from kvtier.evictor.context import HasTemporaries
from kvtier.inspection.segments import Rules
from kvtier.inspection.view import Entry
from kvtier.tiers.shared.reading import SegmentHeaders
from kvtier.tiers.shared.store import Store

STALE_S: Final = 3600.0
"""A temporary file that nobody has written to for that long has no writer any more."""


class Repairs:
    """What may be done to a store. Methods block and raise OSError. Close it."""

    def __init__(self, store: Store) -> None:
        """`store` is closed with this."""
        self._store = store

    def now_s(self) -> float:
        """The time on the store's clock: what a file that is made now is stamped with.

        Raises OSError, as where nothing may be written.
        """
        stamp = f"now-{unique_id()[:16]}"  # as evictors make and sweep them
        try:
            return self._store.put(stamp, b"").modified_s
        finally:
            self._store.remove(stamp)

    def quarantine(
        self, space: str, rules: Rules, first: BlockKey, seen: Entry, reason: str
    ) -> str | None:
        """Move a broken segment out of everybody's way; says what was done, None for nothing."""
        headers = SegmentHeaders(
            self._store, space, rules.checksum, rules.space_digest, rules.block_bytes
        )
        found = self._store.stat(seen.name)
        if found is None or found.version != seen.stat.version:
            return None
        before = self._kept(space)
        headers.quarantine(first, reason)
        if not headers.quarantined:
            return None
        is_kept = any(first.hex() in name for name in self._kept(space) - before)
        return "quarantined" if is_kept else "removed, the quarantine is full"

    def remove_temporary(self, name: str) -> str | None:
        """Remove what a dead writer left; says what was done. ValueError: it is none."""
        if not isinstance(self._store, HasTemporaries):
            return None
        return "removed" if self._store.remove_temporary(name) else None

    def close(self) -> None:
        """Idempotent."""
        self._store.close()

    def _kept(self, space: str) -> set[str]:
        return {entry.name for entry in self._store.list(f"{space}/quarantine").entries}
