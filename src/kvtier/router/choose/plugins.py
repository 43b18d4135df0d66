"""Scorer, filter and picker plugins: their lookup by name, their parameters and their context.

Adding a plugin takes one new file. `cheapest-scorer` is the `PLUGIN` of `scorers/cheapest.py`, or
the object that an installed distribution registers as `cheapest` under the entry point group
`kvtier.router.scorers`. A plugin is a class that is constructed as `PLUGIN(parameters, context)`;
its attribute `Parameters` is the struct that its parameters are read into.
Invariant: parameters are validated data, and the context provides everything else that a plugin
may use (time, randomness), so that the seed determines a decision.
"""

import difflib
import enum
import re
from collections.abc import Callable, Iterable, MutableSequence
from typing import Any, Final, Protocol

import msgspec

from kvtier import plugins
from kvtier.errors import InvalidSettings
from kvtier.router.choose.tier_names import tier_called

_DURATION: Final = re.compile(r"(\d+(\.\d*)?(ns|us|µs|ms|s|m|h))+|0", re.ASCII)
"""A duration in Go's notation: `1m30s`."""


class PluginKind(enum.Enum):
    """The kind of a plugin; the value is its package and entry point group in `kvtier`."""

    FILTER = "router.filters"
    SCORER = "router.scorers"
    PICKER = "router.pickers"

    @property
    def suffix(self) -> str:
        """The suffix of a plugin's name in a configuration: `-scorer`."""
        return f"-{self.name.lower()}"


class Random(Protocol):
    """The random functions available to plugins; `kvtier.clock.seeded` returns one."""

    def random(self) -> float:
        """Return a number in [0, 1)."""
        ...

    def randrange(self, stop: int, /) -> int:
        """Return an integer in [0, stop)."""
        ...

    def shuffle(self, x: MutableSequence[Any], /) -> None:
        """Shuffle `x` in place."""
        ...


class PluginParameters(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The base of all plugin parameters, and the parameters of a plugin without any.

    Constructing a struct with an invalid value raises ValueError.
    """


class EstimatedIndexParameters(PluginParameters, frozen=True, kw_only=True):
    """The size of an estimated index, under the parameter names of both API generations."""

    tier: str = ""
    """The tier that is read, an extension of kvtier; if empty, the plugin's name hints at one."""
    auto_tune: bool = True
    block_size_tokens: int = 0
    block_size: int = 0
    """In characters, like `hash_block_size`; about four make a token."""
    hash_block_size: int = 0
    max_prefix_blocks_to_match: int = 0
    max_prefix_tokens_to_match: int = 0
    lru_capacity_per_server: int = 31_250
    """Blocks."""

    def __post_init__(self) -> None:
        """Raise ValueError for an unknown tier or a negative size."""
        tier_called(self.tier)
        for field in msgspec.structs.fields(type(self)):
            value = getattr(self, field.name)
            if isinstance(value, int) and value < 0:
                raise ValueError(f"{field.encode_name} is {value}; write 0 or more")
        if self.lru_capacity_per_server < 1:
            raise ValueError("lruCapacityPerServer is 0; write 1 or more")


class BackendWeight(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The weight of one tier, as in `{name: gpu, weight: 1.0}`."""

    name: str
    weight: float


class IndexerConfig(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """`indexerConfig`, of which only the tier weights are used.

    The other settings are accepted without effect: kvtier manages its index by its own settings.
    """

    backends: tuple[BackendWeight, ...] = msgspec.field(default=(), name="kvCacheBackendConfigs")
    kv_block_index_config: Any = None
    kv_block_scorer_config: Any = None
    prefix_store_config: Any = None
    token_processor_config: Any = None
    tokenizers_pool_config: Any = None


class TokenProcessorConfig(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """`tokenProcessorConfig`; its block size is a default, as events carry the engine's own."""

    block_size: int = 0
    block_size_tokens: int = 0
    hash_seed: str = ""


class PreciseIndexParameters(PluginParameters, frozen=True, kw_only=True):
    """The parameters of a precise index, under the names of the newer API."""

    token_processor_config: TokenProcessorConfig = TokenProcessorConfig()
    kv_events_config: dict[str, Any] = msgspec.field(default_factory=dict, name="kvEventsConfig")
    indexer_config: IndexerConfig = IndexerConfig()
    speculative_indexing: bool = False
    speculative_ttl: str = msgspec.field(default="", name="speculativeTTL")

    def __post_init__(self) -> None:
        """Raise ValueError for an invalid duration, even though it has no effect."""
        if self.speculative_ttl and not _DURATION.fullmatch(self.speculative_ttl):
            raise ValueError(f"speculativeTTL is {self.speculative_ttl!r}; write 2s or 500ms")


class IndexReaderParameters(PluginParameters, frozen=True, kw_only=True):
    """The parameters of a plugin that reads prefix matches from an index."""

    prefix_match_info_producer_name: str = ""
    """The name of the index; if empty, the longest match per tier of all configured indexes."""


class PluginContext(msgspec.Struct, frozen=True, kw_only=True):
    """Everything besides its parameters that a plugin may use."""

    name: str
    """The name of this plugin instance."""
    random: Random
    now_s: Callable[[], float]
    """Returns the time of the current decision."""
    index: str | None = None
    """The index that the plugin reads; None for all."""
    tier: str | None = None
    """The tier that the plugin reads; None for any."""
    block_tokens: int = 16
    """Tokens per block of that index, for endpoints that do not report their own block size."""
    max_match_tokens: int = 0
    """Longest part of a prompt that is matched; 0 for no limit."""


def find_plugin(plugin_type: str) -> tuple[PluginKind, Any] | None:
    """Return the kind and class of a plugin such as `queue-scorer`, or None if there is none.

    Imports only that plugin's module. Raises InvalidSettings if the plugin cannot be loaded.
    """
    located = _locate(plugin_type)
    if located is None:
        return None
    kind, name = located
    try:
        return kind, plugins.load(kind.value, name)
    except InvalidSettings:
        if name in plugins.known(kind.value):  # the plugin exists, but its import failed
            raise
        return None


def known_plugins() -> list[str]:
    """Return all names that `find_plugin` accepts, sorted. Imports every plugin."""
    return sorted(_type(kind, name) for kind in PluginKind for name in plugins.known(kind.value))


def nearest(name: object, names: Iterable[str]) -> str:
    """Return a suggestion to append to an error: the closest of `names`, or all of them."""
    there = sorted(names)
    matches = difflib.get_close_matches(str(name), there, n=1)
    if matches:
        return f"; did you mean {matches[0]!r}?"
    return f"; known are {', '.join(there)}" if there else "; it has none"


def reads_index(parameters: PluginParameters) -> bool:
    """Return True if a plugin with these parameters reads prefix matches from an index."""
    return hasattr(parameters, "prefix_match_info_producer_name")


def parameters_of(plugin: Any) -> type[PluginParameters]:
    """Return the parameter struct of a plugin class. Raises InvalidSettings if it is not one."""
    declared = getattr(plugin, "Parameters", PluginParameters)
    if not (isinstance(declared, type) and issubclass(declared, PluginParameters)):
        raise InvalidSettings(
            f"{plugin!r}: its Parameters must subclass "
            "kvtier.router.choose.plugins.PluginParameters"
        )
    return declared


_DETECTOR: Final = "-detector"


def _locate(plugin_type: str) -> tuple[PluginKind, str] | None:
    """Split a plugin's name into its kind and module name.

    A detector is a filter that keeps its full name, so `utilization-filter` is not
    `utilization-detector`.
    """
    if plugin_type.endswith(_DETECTOR):
        return PluginKind.FILTER, plugin_type.replace("-", "_")
    for kind in PluginKind:
        if plugin_type.endswith(kind.suffix):
            return kind, plugin_type.removesuffix(kind.suffix).replace("-", "_")
    return None


def _type(kind: PluginKind, name: str) -> str:
    words = name.replace("_", "-")
    return words if words.endswith(_DETECTOR) else words + kind.suffix
