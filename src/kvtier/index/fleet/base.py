"""The contract of the fleet's indexes: how much of a prompt each replica holds, tier by tier.

Two kinds meet it. An *estimated* index remembers what was routed where, in an LRU of each
replica and tier; a *precise* one follows the replicas' own KV events. Choosing does not know
which it asks.

Invariant: what is told of a replica and a tier is a prefix: a block counts only where all
blocks before it are held as well, in this tier or a faster one.
"""

import enum
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from kvtier.index.fleet.prompt import Prompt

DEVICE = "device"
"""The accelerator's own memory; the other tiers are called as in the settings."""


class Source(enum.Enum):
    """How an index knows."""

    ESTIMATED = "estimated"
    PRECISE = "precise"


class Match(NamedTuple):
    """What one replica holds of one prompt."""

    tokens: Mapping[str, int]
    """By tier: tokens of the prompt, from its start, that this tier or a faster one holds. So
    a slower tier never has less than a faster one; tiers that add nothing may be left out."""
    total_tokens: int
    """Of the whole prompt."""

    @property
    def best_tokens(self) -> int:
        """Held in any tier."""
        return max(self.tokens.values(), default=0)

    def ratio(self) -> float:
        """Share of the prompt held in any tier; 0 for an empty prompt."""
        return self.best_tokens / self.total_tokens if self.total_tokens else 0.0


class FleetIndex(Protocol):
    """Belongs to one thread, the event loop's. Nothing blocks, nothing raises for bad input."""

    @property
    def source(self) -> Source:
        """How it knows."""
        ...

    def match(self, prompt: Prompt, replicas: Sequence[str]) -> list[Match]:
        """One answer a replica, in the same order; an unknown replica holds nothing.

        At most 50 us for 64 replicas and 6,250 blocks once `prompt` has its chain. No side
        effects: recency changes in `routed`.
        """
        ...

    def routed(self, prompt: Prompt, replica: str) -> None:
        """The prompt goes to this replica, which will hold it from now on.

        A precise index remembers it for the seconds until the replica says so itself.
        """
        ...

    def resize(self, replica: str, tier: str, capacity_tokens: int) -> None:
        """What the replica's tier holds at most has become known, or has changed."""
        ...

    def remove(self, replica: str) -> None:
        """Forget a replica that is gone, or has lost its caches. Idempotent."""
        ...
