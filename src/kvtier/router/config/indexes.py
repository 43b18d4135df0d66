"""Which indexes a configuration asks for, as data, and how an estimated one is made of it.

Why it exists: the older API hides an index in each `prefix-cache-scorer`, the newer one names
producers; both become the same list. Invariant: sizes are in tokens once they leave here. A
capacity in blocks means blocks of the size beside it, never of another.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from kvtier.errors import InvalidSettings
from kvtier.index.fleet.base import DEVICE, Source
from kvtier.index.fleet.estimated import EstimatedIndex, compared
from kvtier.router.choose.plugins import (
    EstimatedIndexParameters,
    PluginParameters,
    PreciseIndexParameters,
    nearest,
    reads_index,
)
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


def estimated_spec(name: str, sizing: EstimatedIndexParameters) -> IndexSpec:
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


def precise_spec(name: str, parameters: PreciseIndexParameters) -> IndexSpec:
    """An index that follows the replicas' events."""
    processor = parameters.token_processor_config
    return IndexSpec(
        name=name,
        source=Source.PRECISE,
        block_tokens=processor.block_size_tokens or processor.block_size or BLOCK_TOKENS,
        events=parameters.kv_events_config,
    )


def build_estimated(spec: IndexSpec) -> EstimatedIndex:
    """The index, empty. One that is not autotuned does not listen to `resize`."""
    tier = spec.tier or DEVICE
    follows = None if spec.tier is None else (tier,)
    return EstimatedIndex(
        {tier: spec.capacity_tokens},
        block_tokens=compared(spec.block_tokens) if spec.autotune else spec.block_tokens,
        follows=follows if spec.autotune else (),
    )


_PREFIX_SCORER: Final = "prefix-cache-scorer"
DEFAULT_INDEX: Final = "prefix"
"""The index that is made where parts want one and none is configured."""


class IndexWiring:
    """Grows while plugins are declared; then answers. `newer`: the newer API."""

    def __init__(self, *, newer: bool) -> None:
        self._newer = newer
        self._specs: dict[str, IndexSpec] = {}
        self._scorers: dict[str, PluginParameters] = {}
        self._wanted = False

    producers: Final[Mapping[str, type[PluginParameters]]] = {
        APPROXIMATE: EstimatedIndexParameters,
        PRECISE: PreciseIndexParameters,
    }
    """Plugins that are indexes, and their parameters."""

    def add_producer(self, name: str, parameters: PluginParameters) -> None:
        """A producer."""
        if isinstance(parameters, EstimatedIndexParameters):
            self._specs[name] = estimated_spec(name, parameters)
        elif isinstance(parameters, PreciseIndexParameters):
            self._specs[name] = precise_spec(name, parameters)

    def add_plugin(self, name: str, plugin_type: str, parameters: PluginParameters) -> None:
        """A part that may hold an index of its own."""
        if not reads_index(parameters):
            return
        self._wanted = True
        self._scorers[name] = parameters
        if getattr(parameters, "prefix_match_info_producer_name", ""):
            return
        if isinstance(parameters, PreciseIndexParameters):
            self._specs[name] = precise_spec(name, parameters)
        elif isinstance(parameters, EstimatedIndexParameters) and (
            not self._newer or plugin_type != _PREFIX_SCORER or _sized(parameters)
        ):
            self._specs[name] = estimated_spec(name, parameters)

    def index_and_tier(
        self, name: str, parameters: PluginParameters, where: str
    ) -> tuple[str | None, str | None]:
        """The index and the tier of a part, None for any; raises InvalidSettings."""
        if name not in self._scorers:
            return None, None
        index = self._index(name, parameters, where)
        tier = tier_called(getattr(parameters, "tier", ""))
        if not isinstance(parameters, EstimatedIndexParameters):
            return index, tier
        tier = tier or tier_hinted(name)
        if tier is None and index in self._specs:
            tier = self._specs[index].tier
        return index, tier

    def specs(self, looks: Iterable[tuple[str | None, str | None]]) -> dict[str, IndexSpec]:
        """All of them; `looks` is what `looks_at` told of every part."""
        if not self._specs and self._wanted:
            self._specs[DEFAULT_INDEX] = IndexSpec(name=DEFAULT_INDEX)
        specs = dict(self._specs)
        pairs = list(looks)
        for name, spec in specs.items():
            tiers = {tier for index, tier in pairs if index == name}
            if spec.tier is None and spec.source is Source.ESTIMATED and len(tiers) == 1:
                specs[name] = msgspec.structs.replace(spec, tier=tiers.pop())
        return specs

    def _index(self, name: str, parameters: PluginParameters, where: str) -> str | None:
        wanted = _named(parameters)
        asked = [name]
        while wanted in self._scorers:  # the older API names the scorer that has the index
            asked.append(wanted)
            if wanted in asked[:-1]:
                raise InvalidSettings(
                    f"{where}: {' looks at '.join(asked)}, and none of them has an index; "
                    "name a producer"
                )
            name, parameters = wanted, self._scorers[wanted]
            wanted = _named(parameters)
        if wanted:
            if wanted not in self._specs:
                raise InvalidSettings(
                    f"{where}: {name} looks at {wanted!r}, which no producer is called"
                    f"{nearest(wanted, self._specs)}"
                )
            return wanted
        if name in self._specs:
            return name
        if isinstance(parameters, EstimatedIndexParameters):
            if APPROXIMATE not in self._specs:
                self._specs[APPROXIMATE] = estimated_spec(APPROXIMATE, EstimatedIndexParameters())
            return APPROXIMATE
        return None


def _named(parameters: PluginParameters) -> str:
    """The producer or scorer that a part names; empty for none."""
    return (
        getattr(parameters, "prefix_match_info_producer_name", "")
        or getattr(parameters, "prefix_plugin_name", "")
        or ""
    )


def _sized(parameters: EstimatedIndexParameters) -> bool:
    """Whether it says how large its index is, which only an index of its own can be."""
    return any(
        getattr(parameters, field.name) != field.default
        for field in msgspec.structs.fields(EstimatedIndexParameters)
        if field.name != "tier"
    )
