"""What a scorer, filter or picker is made from, and how a name in a configuration finds one.

Why it exists: a new part is one new file. `cheapest-scorer` is the `PLUGIN` of
`scorers/cheapest.py`, or what an installed distribution offers as `cheapest` in the entry points
`kvtier.router.scorers`: a class with a `Parameters` struct inside, made as
`PLUGIN(parameters, context)`.
Invariant: parameters are data that the configuration has checked; all else a part may use
(time, randomness) comes in its context, so that a seed decides what happens.
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
"""As Go writes them: `1m30s`."""


class PluginKind(enum.Enum):
    """What a part does, and the room it lives in."""

    FILTER = "router.filters"
    SCORER = "router.scorers"
    PICKER = "router.pickers"

    @property
    def suffix(self) -> str:
        """What names in configurations end with: `-scorer`."""
        return f"-{self.name.lower()}"


class Random(Protocol):
    """What parts use of `kvtier.clock.seeded`."""

    def random(self) -> float:
        """In [0, 1)."""
        ...

    def randrange(self, stop: int, /) -> int:
        """In [0, stop)."""
        ...

    def shuffle(self, x: MutableSequence[Any], /) -> None:
        """In place."""
        ...


class PluginParameters(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Of a part that has none, and the base of all. Wrong values raise ValueError."""


class EstimatedIndexParameters(PluginParameters, frozen=True, kw_only=True):
    """How an estimated index is sized, in the words of both generations of the API."""

    tier: str = ""
    """kvtier's own: the tier that is looked at. Empty: told by the name, or any."""
    auto_tune: bool = True
    block_size_tokens: int = 0
    block_size: int = 0
    """In characters, as is `hash_block_size`; four make about a token."""
    hash_block_size: int = 0
    max_prefix_blocks_to_match: int = 0
    max_prefix_tokens_to_match: int = 0
    lru_capacity_per_server: int = 31_250
    """Blocks."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        tier_called(self.tier)
        for field in msgspec.structs.fields(type(self)):
            value = getattr(self, field.name)
            if isinstance(value, int) and value < 0:
                raise ValueError(f"{field.encode_name} is {value}; write 0 or more")
        if self.lru_capacity_per_server < 1:
            raise ValueError("lruCapacityPerServer is 0; write 1 or more")


class BackendWeight(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The weight of one tier: `{name: gpu, weight: 1.0}`."""

    name: str
    weight: float


class IndexerConfig(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Of `indexerConfig`, the weights alone; memory, tokens and metrics are kvtier's own."""

    backends: tuple[BackendWeight, ...] = msgspec.field(default=(), name="kvCacheBackendConfigs")
    kv_block_index_config: Any = None
    kv_block_scorer_config: Any = None
    prefix_store_config: Any = None
    token_processor_config: Any = None
    tokenizers_pool_config: Any = None


class TokenProcessorConfig(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Of `tokenProcessorConfig`; engines tell their own block size in their events."""

    block_size: int = 0
    block_size_tokens: int = 0
    hash_seed: str = ""


class PreciseIndexParameters(PluginParameters, frozen=True, kw_only=True):
    """How a precise index is fed, in the words of the newer API."""

    token_processor_config: TokenProcessorConfig = TokenProcessorConfig()
    kv_events_config: dict[str, Any] = msgspec.field(default_factory=dict, name="kvEventsConfig")
    indexer_config: IndexerConfig = IndexerConfig()
    speculative_indexing: bool = False
    speculative_ttl: str = msgspec.field(default="", name="speculativeTTL")

    def __post_init__(self) -> None:
        """Refuse what is no duration, though it has no effect."""
        if self.speculative_ttl and not _DURATION.fullmatch(self.speculative_ttl):
            raise ValueError(f"speculativeTTL is {self.speculative_ttl!r}; write 2s or 500ms")


class IndexReaderParameters(PluginParameters, frozen=True, kw_only=True):
    """Of a part that looks at what an index knows."""

    prefix_match_info_producer_name: str = ""
    """The index's name. Empty: all that are configured, the longest match of each tier."""


class PluginContext(msgspec.Struct, frozen=True, kw_only=True):
    """What a part may use besides its parameters."""

    name: str
    """Of this instance."""
    random: Random
    now_s: Callable[[], float]
    """The time of the decision that is being made."""
    index: str | None = None
    """The index that this part looks at; None: all."""
    tier: str | None = None
    """The tier that this part looks at; None: any."""
    block_tokens: int = 16
    """Tokens of a block of that index, where the endpoint does not tell its own."""
    max_match_tokens: int = 0
    """More of a prompt is not looked at; 0: no bound."""


def find_plugin(plugin_type: str) -> tuple[PluginKind, Any] | None:
    """The kind and class of `queue-scorer`; None where there is no such part.

    Imports one module. Raises InvalidSettings where a part is there but cannot be loaded.
    """
    located = _locate(plugin_type)
    if located is None:
        return None
    kind, name = located
    try:
        return kind, plugins.load(kind.value, name)
    except InvalidSettings:
        if name in plugins.known(kind.value):  # there, but it cannot be loaded
            raise
        return None


def known_plugins() -> list[str]:
    """Every name that `find` knows, sorted. Imports all parts."""
    return sorted(_type(kind, name) for kind in PluginKind for name in plugins.known(kind.value))


def nearest(name: object, names: Iterable[str]) -> str:
    """`; did you mean 'queue-scorer'?`, or what there is."""
    there = sorted(names)
    matches = difflib.get_close_matches(str(name), there, n=1)
    if matches:
        return f"; did you mean {matches[0]!r}?"
    return f"; known are {', '.join(there)}" if there else "; it has none"


def reads_index(parameters: PluginParameters) -> bool:
    """Whether a part with these looks at what an index knows of a request's prompt."""
    return hasattr(parameters, "prefix_match_info_producer_name")


def parameters_of(plugin: Any) -> type[PluginParameters]:
    """The struct inside a part's class."""
    declared = getattr(plugin, "Parameters", PluginParameters)
    if not (isinstance(declared, type) and issubclass(declared, PluginParameters)):
        raise InvalidSettings(
            f"{plugin!r}: its Parameters are not kvtier.router.choose.plugins.Parameters"
        )
    return declared


_DETECTOR: Final = "-detector"


def _locate(plugin_type: str) -> tuple[PluginKind, str] | None:
    """Detectors are filters and keep their whole name: `utilization-filter` is another part."""
    if plugin_type.endswith(_DETECTOR):
        return PluginKind.FILTER, plugin_type.replace("-", "_")
    for kind in PluginKind:
        if plugin_type.endswith(kind.suffix):
            return kind, plugin_type.removesuffix(kind.suffix).replace("-", "_")
    return None


def _type(kind: PluginKind, name: str) -> str:
    words = name.replace("_", "-")
    return words if words.endswith(_DETECTOR) else words + kind.suffix
