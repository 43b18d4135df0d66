"""Where blocks are, as the events tell it: what a reader of announcements believes.

Why: a router knows a cache by its events only. Replaying them must give what the cache holds.
Invariant: a block enters a tier before it leaves it, and neither twice.
"""

from collections.abc import Iterable

from kvtier.blocks.events import BlockEvent, Change
from kvtier.blocks.key import BlockKey


class Ledger:
    """Blocks per tier after all events so far. Not thread-safe."""

    def __init__(self) -> None:
        self._held: dict[str, set[BlockKey]] = {}

    def held(self, tier: str) -> set[BlockKey]:
        """The blocks that `tier` is said to hold."""
        return self._held.setdefault(tier, set())

    def replay(self, events: Iterable[BlockEvent]) -> None:
        """Take in events, in order. Raises AssertionError at one that cannot be true."""
        for event in events:
            held = self.held(event.tier)
            for key in event.keys:
                if event.change is Change.STORED:
                    assert key not in held, f"{key.hex()} entered {event.tier} twice"
                    held.add(key)
                else:
                    assert key in held, f"{key.hex()} left {event.tier}, where it was not"
                    held.remove(key)
