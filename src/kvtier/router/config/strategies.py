"""AIBrix's routing strategies, and the balancers of other routers, as profiles.

Why it exists: the header `routing-strategy` of a request names one. They are an
EndpointPickerConfig like any other and look at whatever indexes the fleet has. What differs from
AIBrix: `throughput` goes by tokens in flight and `least-latency` by the expected seconds to the
first token, where AIBrix goes by averages of the past.
"""

from collections.abc import Mapping
from typing import Final

from kvtier.index.fleet.base import FleetIndex
from kvtier.router.choose.profile import Profile, build
from kvtier.router.config.reading import Configuration, parse_configuration

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


def configuration() -> Configuration:
    """All of them, a profile each."""
    return parse_configuration(STRATEGIES, "the routing strategies")


def strategies(
    indexes: Mapping[str, FleetIndex], seed: int = 0, *, keeps_matches: bool = False
) -> dict[str, Profile]:
    """All of them by name, over the indexes that the fleet's own profiles use; see `build`."""
    return build(configuration(), indexes, seed, keeps_matches=keeps_matches)
