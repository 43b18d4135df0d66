"""The indexes that a configuration declares, and the index and tier that each plugin reads.

The older API declares an index implicitly with each `prefix-cache-scorer`, and the newer one names
producers; both result in the same list of `IndexSpec`. Invariant: a capacity in blocks always
refers to the block size in the same struct, and indexes are sized in tokens.

The wiring rules:

* A plugin that names a producer reads that index.
* A `prefix-cache-scorer` that names none has an index of its own in the older API; in the newer
  one it reads the unnamed producer `approx-prefix-cache-producer`, which exists implicitly.
* Any other plugin that names none reads all indexes.
* A plugin's tier is its parameter `tier`, else the one that its name hints at, else its index's.
* An index whose name hints at no tier has the tier of the plugins that read it, if they agree.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from kvtier.errors import InvalidSettings
from kvtier.index.fleet.base import DEVICE, IndexSource
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
    """An index that plugins read."""

    name: str
    source: IndexSource | None = None
    """None for precise where replicas publish events, and estimated elsewhere."""
    tier: str | None = None
    """The tier that is estimated; None for all tiers that the replicas report."""
    autotune: bool = True
    """True if block size and capacities follow the replicas' metrics, where there are any."""
    block_tokens: int = BLOCK_TOKENS
    capacity_blocks: int = 31_250
    """Capacity of a replica's tier, if it is not autotuned or no metric reports it."""
    max_match_tokens: int = 0
    """Longest part of a prompt that is matched; 0 for no limit."""
    events: Mapping[str, Any] = {}
    """`kvEventsConfig` of a precise producer, unchanged."""

    @property
    def capacity_tokens(self) -> int:
        """The capacity in tokens, the unit of `FleetIndex.resize`."""
        return self.capacity_blocks * self.block_tokens


def estimated_spec(name: str, sizing: EstimatedIndexParameters) -> IndexSpec:
    """Return the spec of an estimated index from the parameters of a scorer or producer."""
    characters = sizing.hash_block_size or sizing.block_size
    block_tokens = sizing.block_size_tokens or -(-characters // CHARACTERS_A_TOKEN)
    block_tokens = block_tokens or BLOCK_TOKENS
    most = sizing.max_prefix_tokens_to_match or sizing.max_prefix_blocks_to_match * block_tokens
    return IndexSpec(
        name=name,
        source=IndexSource.ESTIMATED,
        tier=tier_called(sizing.tier) or tier_hinted(name),
        autotune=sizing.auto_tune,
        block_tokens=block_tokens,
        capacity_blocks=sizing.lru_capacity_per_server,
        max_match_tokens=most,
    )


def precise_spec(name: str, parameters: PreciseIndexParameters) -> IndexSpec:
    """Return the spec of an index that follows the replicas' KV events."""
    processor = parameters.token_processor_config
    return IndexSpec(
        name=name,
        source=IndexSource.PRECISE,
        block_tokens=processor.block_size_tokens or processor.block_size or BLOCK_TOKENS,
        events=parameters.kv_events_config,
    )


def build_estimated(spec: IndexSpec) -> EstimatedIndex:
    """Return an empty index for `spec`; unless it is autotuned, it ignores `resize`."""
    tier = spec.tier or DEVICE
    follows = None if spec.tier is None else (tier,)
    return EstimatedIndex(
        {tier: spec.capacity_tokens},
        block_tokens=compared(spec.block_tokens) if spec.autotune else spec.block_tokens,
        follows=follows if spec.autotune else (),
    )


_PREFIX_SCORER: Final = "prefix-cache-scorer"
DEFAULT_INDEX: Final = "prefix"
"""The name of the index that is created if plugins read one and none is configured."""


class IndexWiring:
    """The assignment of indexes and tiers to plugins.

    All producers and plugins have to be added before `index_and_tier` or `specs` is called.
    `newer`: the file uses the newer API.
    """

    def __init__(self, *, newer: bool) -> None:
        self._newer = newer
        self._specs: dict[str, IndexSpec] = {}
        self._scorers: dict[str, PluginParameters] = {}
        self._wanted = False

    producers: Final[Mapping[str, type[PluginParameters]]] = {
        APPROXIMATE: EstimatedIndexParameters,
        PRECISE: PreciseIndexParameters,
    }
    """Plugin types that declare an index, with their parameters."""

    def add_producer(self, name: str, parameters: PluginParameters) -> None:
        """Add the index that a producer plugin declares."""
        if isinstance(parameters, EstimatedIndexParameters):
            self._specs[name] = estimated_spec(name, parameters)
        elif isinstance(parameters, PreciseIndexParameters):
            self._specs[name] = precise_spec(name, parameters)

    def add_plugin(self, name: str, plugin_type: str, parameters: PluginParameters) -> None:
        """Add a plugin, and the index that it declares implicitly, if it does."""
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
        """Return the index and tier that a plugin reads, each None for any.

        Raises InvalidSettings if the plugin names an index that does not exist.
        """
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
        """Return all indexes; `looks` holds the results of `index_and_tier` for all plugins."""
        if not self._specs and self._wanted:
            self._specs[DEFAULT_INDEX] = IndexSpec(name=DEFAULT_INDEX)
        specs = dict(self._specs)
        pairs = list(looks)
        for name, spec in specs.items():
            tiers = {tier for index, tier in pairs if index == name}
            if spec.tier is None and spec.source is IndexSource.ESTIMATED and len(tiers) == 1:
                specs[name] = msgspec.structs.replace(spec, tier=tiers.pop())
        return specs

    def _index(self, name: str, parameters: PluginParameters, where: str) -> str | None:
        wanted = _named(parameters)
        asked = [name]
        while wanted in self._scorers:  # in the older API, plugins name the scorer with the index
            asked.append(wanted)
            if wanted in asked[:-1]:
                raise InvalidSettings(
                    f"{where}: {' -> '.join(asked)}: none of these plugins has an index; "
                    "name a producer"
                )
            name, parameters = wanted, self._scorers[wanted]
            wanted = _named(parameters)
        if wanted:
            if wanted not in self._specs:
                raise InvalidSettings(
                    f"{where}: {name} reads the index {wanted!r}, but there is no such producer"
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
    """Return the producer or scorer that a plugin names, or an empty string."""
    return (
        getattr(parameters, "prefix_match_info_producer_name", "")
        or getattr(parameters, "prefix_plugin_name", "")
        or ""
    )


def _sized(parameters: EstimatedIndexParameters) -> bool:
    """Return True if the parameters size an index, which implies an index of the plugin's own."""
    return any(
        getattr(parameters, field.name) != field.default
        for field in msgspec.structs.fields(EstimatedIndexParameters)
        if field.name != "tier"
    )
