"""One index out of two: what replicas tell where they tell it, an estimate for the others.

Engines tell a block once, when it comes. So a replica that has told from its beginning is judged
by that alone, and what it has lost is not believed to be there; of one whose events were missed
in part, the longer of the two prefixes counts: what it has used all along it does not tell again.

Invariant: a prompt of characters can only be compared with the estimate.
"""

from collections.abc import Sequence
from typing import Final

from kvtier.index.fleet.base import Match, Source
from kvtier.index.fleet.estimated import EstimatedIndex
from kvtier.index.fleet.precise import PreciseIndex
from kvtier.index.fleet.prompt import Prompt, Unit


class BlendedIndex:
    """Meets FleetIndex. Capacities and drops go to the two themselves."""

    source: Final = Source.PRECISE

    def __init__(self, estimated: EstimatedIndex, precise: PreciseIndex) -> None:
        self._estimated = estimated
        self._precise = precise

    def match(self, prompt: Prompt, replicas: Sequence[str]) -> list[Match]:
        """See FleetIndex."""
        told: frozenset[str] = frozenset()
        if prompt.unit is Unit.TOKEN:
            told = frozenset(name for name in replicas if self._precise.held_blocks(name))
        if not told:
            return self._estimated.match(prompt, replicas)
        precise = self._precise.match(prompt, replicas)
        whole = frozenset(name for name in told if self._precise.is_whole(name))
        if len(whole) == len(replicas):
            return precise
        estimated = self._estimated.match(prompt, replicas)
        return [
            mine if name in whole or (name in told and mine.best_tokens >= its.best_tokens) else its
            for name, mine, its in zip(replicas, precise, estimated, strict=True)
        ]

    def routed(self, prompt: Prompt, replica: str) -> None:
        """See FleetIndex. Both: events may end."""
        self._estimated.routed(prompt, replica)
        self._precise.routed(prompt, replica)

    def resize(self, replica: str, tier: str, capacity_tokens: int) -> None:
        """See FleetIndex."""
        self._estimated.resize(replica, tier, capacity_tokens)

    def remove(self, replica: str) -> None:
        """See FleetIndex."""
        self._estimated.remove(replica)
        self._precise.remove(replica)
