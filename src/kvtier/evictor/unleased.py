"""The leases of a dry run: every shard, and nothing is written but one stamp for the time.

Why: what an evictor would do is asked for the whole store, whoever works on it now. Invariant:
nothing stays in the store.
"""

from typing import Final

from kvtier.clock import unique_id
from kvtier.evictor.leases import ALL
from kvtier.tiers.shared.store import Store


class Unleased:
    """Stands where `Leases` would."""

    fenced: Final = 0

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def owned(self) -> list[str]:
        """All."""
        return list(ALL)

    def epoch(self, shard: str) -> int:
        """None that anybody else has."""
        del shard
        return 0

    def now_s(self) -> float:
        """The store's clock, as it stamps it on a file that is gone at once. Raises OSError."""
        name = f"now-{unique_id()[:16]}"  # at the top: a folder would stay
        try:
            return self._store.put(name, b"").modified_s
        finally:
            self._store.remove(name)

    def keep(self, shard: str) -> None:
        """Nobody can take it away."""

    def renew(self) -> None:
        """Nothing to keep up."""

    def balance(self) -> list[str]:
        """All."""
        return self.owned

    def release(self) -> None:
        """Nothing was taken."""
