"""The contract of the fleet's indexes: how much of a prompt each replica holds, tier by tier.

There are two kinds. An *estimated* index remembers which prompts were routed to which replica, in
an LRU for each replica and tier. A *precise* index follows the KV events of the replicas. The
scorers do not know which kind they ask.

Invariant: the answer for a replica and a tier is a prefix: a block counts only if all blocks
before it are held as well, in this tier or a faster one.
"""

import enum
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from kvtier.index.fleet.prompt import Prompt

DEVICE = "device"
"""The tier of the accelerator's own memory; the other tiers are named as in the settings."""


class IndexSource(enum.Enum):
    """The kinds of indexes, by the source of their knowledge."""

    ESTIMATED = "estimated"
    PRECISE = "precise"


class Match(NamedTuple):
    """The part of one prompt that one replica holds."""

    tokens: Mapping[str, int]
    """By tier: the leading tokens of the prompt that this tier or a faster one holds. A slower
    tier never has fewer than a faster one; tiers that add nothing may be left out."""
    total_tokens: int
    """The tokens of the whole prompt."""

    @property
    def best_tokens(self) -> int:
        """The leading tokens that are held in any tier."""
        return max(self.tokens.values(), default=0)

    def ratio(self) -> float:
        """Return the share of the prompt held in any tier; 0 for an empty prompt."""
        return self.best_tokens / self.total_tokens if self.total_tokens else 0.0


class FleetIndex(Protocol):
    """An index over the caches of all replicas.

    Only the event loop's thread uses it. No method blocks or raises for bad input.
    """

    @property
    def source(self) -> IndexSource:
        """The kind of the index."""
        ...

    def match(self, prompt: Prompt, replicas: Sequence[str]) -> list[Match]:
        """Return one Match per replica, in the same order; an unknown replica holds nothing.

        Takes at most 50 us for 64 replicas and 6,250 blocks once the prompt's chain is hashed.
        Has no side effects: `routed` updates recency.
        """
        ...

    def routed(self, prompt: Prompt, replica: str) -> None:
        """Note that the prompt goes to this replica, which will hold it from now on.

        A precise index remembers this only for the seconds until the replica announces it.
        """
        ...

    def resize(self, replica: str, tier: str, capacity_tokens: int) -> None:
        """Set the capacity of a replica's tier."""
        ...

    def remove(self, replica: str) -> None:
        """Remove a replica that is gone or has lost its caches. Idempotent."""
        ...
