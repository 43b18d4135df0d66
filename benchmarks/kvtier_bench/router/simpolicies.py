"""The profiles that are compared in simulation, each with indexes of its own, sized as told.

The files of `examples/router` are read as they are; the others are the routing strategies. All
look at estimated indexes, as where replicas publish no events.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from kvtier.index.fleet.base import DEVICE
from kvtier.index.fleet.estimated import EstimatedIndex, compared
from kvtier.router.choose.base import Endpoint
from kvtier.router.choose.profile import Profile
from kvtier.router.config import indexes
from kvtier.router.config.profiles import build_profiles, build_strategies
from kvtier.router.config.reading import Configuration, read_configuration

Policy = Callable[[Sequence[Endpoint]], Profile]
"""Makes a profile that has seen nothing yet, for these endpoints."""

_STRATEGIES: Final = (
    "round-robin",
    "random",
    "least-request",
    "power-of-two",
    "session-affinity",
    "prefix-cache",
)
_FILES: Final = {
    "document, 2:2:1:1": "tiered-prefix-cache.yaml",
    "document, active requests": "active-requests.yaml",
    "document, producers": "producers.yaml",
    "document, no-hit-lru 1:1:1:1:1": "no-hit-lru.yaml",
}


def policies(examples: Path) -> dict[str, Policy]:
    """By name. `examples` holds the configurations. Raises InvalidSettings."""
    found: dict[str, Policy] = {name: _strategy(name) for name in _STRATEGIES}
    for name, file in _FILES.items():
        found[name] = _file(read_configuration(str(examples / file)))
    found["expected-ttft"] = _file(read_configuration(None))
    return found


def _strategy(name: str) -> Policy:
    def make(endpoints: Sequence[Endpoint]) -> Profile:
        index = EstimatedIndex({})
        _size(index, endpoints)
        return build_strategies({"prefix": index})[name]

    return make


def _file(configuration: Configuration) -> Policy:
    def make(endpoints: Sequence[Endpoint]) -> Profile:
        made = {}
        for name, spec in configuration.indexes.items():
            made[name] = indexes.build_estimated(spec)
            if spec.autotune:
                _size(made[name], endpoints)
        return next(iter(build_profiles(configuration, made).values()))

    return make


def _size(index: EstimatedIndex, endpoints: Sequence[Endpoint]) -> None:
    """As a scrape of their metrics would."""
    for endpoint in endpoints:
        for tier, size in endpoint.load.tiers.items():
            index.resize(endpoint.name, tier, size.capacity_tokens)
        block_tokens = compared(endpoint.load.block_tokens or indexes.BLOCK_TOKENS)
        index.set_block_tokens(endpoint.name, block_tokens)
    assert DEVICE in endpoints[0].load.tiers
