"""Profiles built from a configuration, and the built-in routing strategies.

A request can name a routing strategy in its header `routing-strategy`. The strategies are those of
AIBrix and common load-balancing policies, written as an EndpointPickerConfig, and they read
whatever indexes the fleet has. Unlike in AIBrix, `throughput` depends on the tokens in flight and
`least-latency` on the expected time to first token, instead of past averages.
"""

from collections.abc import Mapping
from typing import Any, Final

from kvtier.clock import seeded
from kvtier.errors import InvalidSettings
from kvtier.index.fleet.base import FleetIndex
from kvtier.router.choose import plugins
from kvtier.router.choose.decision import WeightedScorer
from kvtier.router.choose.profile import DecisionClock, Profile
from kvtier.router.config.indexes import IndexSpec
from kvtier.router.config.reading import Configuration, PluginSpec, ProfileSpec, parse_configuration

STRATEGIES: Final = """\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- {type: max-score-picker, name: best}
- type: random-picker
- type: round-robin-picker
- type: least-request-picker
- type: power-of-two-picker
- type: prefix-cache-picker
- type: expected-ttft-scorer
- type: token-load-scorer
- type: kv-cache-utilization-scorer
- type: session-affinity-scorer
  parameters:
    encodedEndpointHeaderConfig: {header: x-session-id, tokenOf: address}
schedulingProfiles:
- {name: random, plugins: [{pluginRef: random-picker}]}
- {name: round-robin, plugins: [{pluginRef: round-robin-picker}]}
- {name: least-request, plugins: [{pluginRef: least-request-picker}]}
- {name: power-of-two, plugins: [{pluginRef: power-of-two-picker}]}
- {name: prefix-cache, plugins: [{pluginRef: prefix-cache-picker}]}
- {name: least-latency, plugins: [{pluginRef: expected-ttft-scorer}, {pluginRef: best}]}
- {name: expected-ttft, plugins: [{pluginRef: expected-ttft-scorer}, {pluginRef: best}]}
- {name: throughput, plugins: [{pluginRef: token-load-scorer}, {pluginRef: best}]}
- {name: least-kv-cache, plugins: [{pluginRef: kv-cache-utilization-scorer}, {pluginRef: best}]}
- {name: least-gpu-cache, plugins: [{pluginRef: kv-cache-utilization-scorer}, {pluginRef: best}]}
- {name: session-affinity, plugins: [{pluginRef: session-affinity-scorer}, {pluginRef: best}]}
"""


def strategies_configuration() -> Configuration:
    """Return the configuration of the built-in strategies, with one profile each."""
    return parse_configuration(STRATEGIES, "the routing strategies")


def build_strategies(
    indexes: Mapping[str, FleetIndex], seed: int = 0, *, keeps_matches: bool = False
) -> dict[str, Profile]:
    """Return the built-in strategies by name, on the given indexes; see `build_profiles`."""
    return build_profiles(strategies_configuration(), indexes, seed, keeps_matches=keeps_matches)


def build_profiles(
    configuration: Configuration,
    indexes: Mapping[str, FleetIndex],
    seed: int = 0,
    *,
    keeps_matches: bool = False,
) -> dict[str, Profile]:
    """Return the profiles of a configuration by name; the first one is the default.

    Each plugin is instantiated once, however many profiles use it. `indexes` has to contain the
    ones in `configuration.indexes` and may contain more; plugins that name no index read all.
    A profile without a plugin that reads an index neither queries nor updates them, unless
    `keeps_matches` asks for the matches in every decision. Raises InvalidSettings if an index is
    missing or a plugin rejects its parameters.
    """
    missing = [
        name
        for name in {one.index for one in configuration.plugins.values()}
        if name is not None and name not in indexes
    ]
    if missing:
        raise InvalidSettings(f"{configuration.path}: there is no index {', '.join(missing)}")
    clock = DecisionClock()
    random = seeded(seed)
    made = {
        name: _make(spec, configuration.indexes, random, clock)
        for name, spec in configuration.plugins.items()
    }
    return {
        name: Profile(
            name,
            filters=[(one, made[one]) for one in spec.filters],
            scorers=[WeightedScorer(one, weight, made[one]) for one, weight in spec.scorers],
            picker=(spec.picker, made[spec.picker]),
            indexes=indexes if keeps_matches or _reads(spec, configuration) else {},
            clock=clock,
        )
        for name, spec in configuration.profiles.items()
    }


def _reads(spec: ProfileSpec, configuration: Configuration) -> bool:
    names = (*spec.filters, *(name for name, _ in spec.scorers), spec.picker)
    return any(plugins.reads_index(configuration.plugins[name].parameters) for name in names)


def _make(
    spec: PluginSpec,
    indexes: Mapping[str, IndexSpec],
    random: plugins.Random,
    clock: DecisionClock,
) -> Any:
    index = indexes.get(spec.index) if spec.index is not None else None
    sizes = index or IndexSpec(name="")
    context = plugins.PluginContext(
        name=spec.name,
        random=random,
        now_s=clock.now_s,
        index=spec.index,
        tier=spec.tier,
        block_tokens=sizes.block_tokens,
        max_match_tokens=sizes.max_match_tokens,
    )
    try:
        return spec.plugin(spec.parameters, context)
    except ValueError as error:
        raise InvalidSettings(f"{spec.where}: {spec.name}: {error}") from error
