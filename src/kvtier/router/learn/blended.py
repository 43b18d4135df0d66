"""A blend of two indexes: precise for replicas that publish KV events, estimated for the others.

An engine publishes a block once, when it stores it. For a replica whose events are known since it
started, the precise index alone is used, so evicted blocks do not count. For a replica some of
whose events were missed, the longer of the two matches is used, because the engine does not publish
blocks again that it has kept all along.

Invariant: a prompt of characters is matched against the estimated index only.
"""

from collections.abc import Sequence
from typing import Final

from kvtier.index.fleet.base import IndexSource, Match
from kvtier.index.fleet.estimated import EstimatedIndex
from kvtier.index.fleet.precise import PreciseIndex
from kvtier.index.fleet.prompt import Prompt, Unit


class BlendedIndex:
    """A FleetIndex that combines an estimated and a precise index."""

    source: Final = IndexSource.PRECISE

    def __init__(self, estimated: EstimatedIndex, precise: PreciseIndex) -> None:
        self._estimated = estimated
        self._precise = precise

    def match(self, prompt: Prompt, replicas: Sequence[str]) -> list[Match]:
        """Return the better match of each replica, in the order of `replicas`."""
        known: frozenset[str] = frozenset()
        if prompt.unit is Unit.TOKEN:
            known = frozenset(name for name in replicas if self._precise.held_blocks(name))
        if not known:
            return self._estimated.match(prompt, replicas)
        precise = self._precise.match(prompt, replicas)
        whole = frozenset(name for name in known if self._precise.is_whole(name))
        if len(whole) == len(replicas):
            return precise
        estimated = self._estimated.match(prompt, replicas)
        return [
            exact
            if name in whole or (name in known and exact.best_tokens >= guess.best_tokens)
            else guess
            for name, exact, guess in zip(replicas, precise, estimated, strict=True)
        ]

    def routed(self, prompt: Prompt, replica: str) -> None:
        """Record the request in both indexes, because a replica's events may end."""
        self._estimated.routed(prompt, replica)
        self._precise.routed(prompt, replica)

    def resize(self, replica: str, tier: str, capacity_tokens: int) -> None:
        """Set a tier's capacity in the estimated index; the precise one has no capacities."""
        self._estimated.resize(replica, tier, capacity_tokens)

    def remove(self, replica: str) -> None:
        """Remove a replica from both indexes."""
        self._estimated.remove(replica)
        self._precise.remove(replica)
