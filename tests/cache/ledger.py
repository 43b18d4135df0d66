"""A replay of block events, to compare with what the cache holds.

A router knows a cache by its events only, so replaying them must yield the cache's contents.
Invariant: a block enters a tier before it is removed from it, and neither happens twice.
"""

from collections.abc import Iterable

from kvtier.blocks.events import BlockEvent, Change
from kvtier.blocks.key import BlockKey


class Ledger:
    """The blocks per tier after the events replayed so far."""

    def __init__(self) -> None:
        self._held: dict[str, set[BlockKey]] = {}

    def held(self, tier: str) -> set[BlockKey]:
        """Return the blocks that `tier` holds according to the events."""
        return self._held.setdefault(tier, set())

    def replay(self, events: Iterable[BlockEvent]) -> None:
        """Apply events in order. Raises AssertionError at an event that cannot be true."""
        for event in events:
            held = self.held(event.tier)
            for key in event.keys:
                if event.change is Change.STORED:
                    assert key not in held, f"{key.hex()} entered {event.tier} twice"
                    held.add(key)
                else:
                    assert key in held, f"{key.hex()} was removed from {event.tier} but not held"
                    held.remove(key)
