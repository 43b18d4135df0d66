"""Which indexes a configuration asks for, as data, and how an estimated one is made of it.

Why it exists: the older API hides an index in each `prefix-cache-scorer`, the newer one names
producers; both become the same list. Invariant: sizes are in tokens once they leave here. A
capacity in blocks means blocks of the size beside it, never of another.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from kvtier.index.fleet.base import DEVICE, Source
from kvtier.index.fleet.estimated import EstimatedIndex, compared
from kvtier.router.choose.parts import Precise, Sizing
from kvtier.router.choose.tier_names import tier_called, tier_hinted

APPROXIMATE: Final = "approx-prefix-cache-producer"
PRECISE: Final = "precise-prefix-cache-producer"
BLOCK_TOKENS: Final = 16
CHARACTERS_A_TOKEN: Final = 4


class IndexSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One index that parts look at."""

    name: str
    source: Source | None = None
    """None: precise where the replicas publish events, else estimated."""
    tier: str | None = None
    """The tier it estimates; None: all that the replicas report."""
    autotune: bool = True
    """Block size and capacities follow the replicas' metrics where they have any."""
    block_tokens: int = BLOCK_TOKENS
    capacity_blocks: int = 31_250
    """Of a replica's tier, where it is not autotuned or no metric tells it."""
    max_match_tokens: int = 0
    """More of a prompt is not looked at; 0: no bound."""
    events: Mapping[str, Any] = {}
    """`kvEventsConfig` of a precise producer, as written."""

    @property
    def capacity_tokens(self) -> int:
        """The capacity in the unit of `FleetIndex.resize`."""
        return self.capacity_blocks * self.block_tokens


def estimated(name: str, sizing: Sizing) -> IndexSpec:
    """An index of its own, as `prefix-cache-scorer` or a producer describes it."""
    characters = sizing.hash_block_size or sizing.block_size
    block_tokens = sizing.block_size_tokens or -(-characters // CHARACTERS_A_TOKEN)
    block_tokens = block_tokens or BLOCK_TOKENS
    most = sizing.max_prefix_tokens_to_match or sizing.max_prefix_blocks_to_match * block_tokens
    return IndexSpec(
        name=name,
        source=Source.ESTIMATED,
        tier=tier_called(sizing.tier) or tier_hinted(name),
        autotune=sizing.auto_tune,
        block_tokens=block_tokens,
        capacity_blocks=sizing.lru_capacity_per_server,
        max_match_tokens=most,
    )


def precise(name: str, parameters: Precise) -> IndexSpec:
    """An index that follows the replicas' events."""
    processor = parameters.token_processor_config
    return IndexSpec(
        name=name,
        source=Source.PRECISE,
        block_tokens=processor.block_size_tokens or processor.block_size or BLOCK_TOKENS,
        events=parameters.kv_events_config,
    )


def estimate(spec: IndexSpec) -> EstimatedIndex:
    """The index, empty. One that is not autotuned does not listen to `resize`."""
    tier = spec.tier or DEVICE
    follows = None if spec.tier is None else (tier,)
    return EstimatedIndex(
        {tier: spec.capacity_tokens},
        block_tokens=compared(spec.block_tokens) if spec.autotune else spec.block_tokens,
        follows=follows if spec.autotune else (),
    )
