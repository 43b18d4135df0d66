"""The free slots of a fixed number of slots, in memory or on disk."""

from collections.abc import Iterable


class FreeSlots:
    """The free ones of the slots 0 to `count` - 1. Not thread-safe.

    Slots that were never used are handed out in rising order; released slots are reused before
    them, the last one first.
    """

    __slots__ = ("_count", "_fresh", "_released")

    def __init__(self, count: int) -> None:
        self._count = count
        self._fresh = 0
        """Slots from here on were never used."""
        self._released: list[int] = []

    def __len__(self) -> int:
        """The number of free slots."""
        return len(self._released) + self._count - self._fresh

    def take_all(self, count: int) -> list[int] | None:
        """Take exactly `count` free slots; return None, and take none, if there are fewer."""
        return (
            self.take(count) if count <= len(self._released) + self._count - self._fresh else None
        )

    def take(self, count: int) -> list[int]:
        """Take up to `count` free slots: fewer if there are not that many."""
        released = self._released
        if count <= len(released):
            taken = released[len(released) - count :]
            del released[len(released) - count :]
            return taken
        taken = released.copy()
        released.clear()
        end = min(self._fresh + count - len(taken), self._count)
        taken.extend(range(self._fresh, end))
        self._fresh = end
        return taken

    def release(self, slots: Iterable[int]) -> None:
        """Give slots back. The caller owns each of them."""
        self._released.extend(slots)

    def rebuild(self, fresh: int, released: list[int]) -> None:
        """Start again: slots from `fresh` on were never used, `released` below it are free."""
        self._fresh = fresh
        self._released = released
