"""AIBrix's routing strategies, and the balancers of other routers, as profiles.

Why it exists: the header `routing-strategy` of a request names one. They are an
EndpointPickerConfig like any other and look at whatever indexes the fleet has. What differs from
AIBrix: `throughput` goes by tokens in flight and `least-latency` by the expected seconds to the
first token, where AIBrix goes by averages of the past.
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
    """All of them, a profile each."""
    return parse_configuration(STRATEGIES, "the routing strategies")


def build_strategies(
    indexes: Mapping[str, FleetIndex], seed: int = 0, *, keeps_matches: bool = False
) -> dict[str, Profile]:
    """All of them by name, over the indexes that the fleet's own profiles use; see `build`."""
    return build_profiles(strategies_configuration(), indexes, seed, keeps_matches=keeps_matches)


def build_profiles(
    configuration: Configuration,
    indexes: Mapping[str, FleetIndex],
    seed: int = 0,
    *,
    keeps_matches: bool = False,
) -> dict[str, Profile]:
    """Every profile of a configuration, by name; the first is the default.

    `indexes` holds those that `configuration.indexes` asks for, and may hold more: parts that
    name none look at all. A profile of which no part looks at any asks and tells none of them,
    unless `keeps_matches` wants to know of every decision what was held. Raises InvalidSettings
    where an index is missing.
    """
    missing = [
        name
        for name in {one.index for one in configuration.plugins.values()}
        if name is not None and name not in indexes
    ]
    if missing:
        raise InvalidSettings(f"{configuration.path}: there is no index {', '.join(missing)}")
    moment = DecisionClock()
    random = seeded(seed)
    made = {
        name: _make(spec, configuration.indexes, random, moment)
        for name, spec in configuration.plugins.items()
    }
    return {
        name: Profile(
            name,
            filters=[(part, made[part]) for part in spec.filters],
            scorers=[WeightedScorer(part, weight, made[part]) for part, weight in spec.scorers],
            picker=(spec.picker, made[spec.picker]),
            indexes=indexes if keeps_matches or _reads(spec, configuration) else {},
            moment=moment,
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
    moment: DecisionClock,
) -> Any:
    index = indexes.get(spec.index) if spec.index is not None else None
    sizes = index or IndexSpec(name="")
    context = plugins.PluginContext(
        name=spec.name,
        random=random,
        now_s=moment.now_s,
        index=spec.index,
        tier=spec.tier,
        block_tokens=sizes.block_tokens,
        max_match_tokens=sizes.max_match_tokens,
    )
    try:
        return spec.plugin(spec.parameters, context)
    except ValueError as error:
        raise InvalidSettings(f"{spec.where}: {spec.name}: {error}") from error
