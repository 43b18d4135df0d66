"""Names of the field's plugins that are no scorer, filter or picker here, and why.

Why it exists: a configuration that ran elsewhere must load, and say what of it does nothing.
Invariant: what is ignored changes no choice; what would change choices and is not there is
refused, with the reason.
"""

from collections.abc import Mapping
from typing import Final

_SCRAPED = "kvtier reads the engines' metrics by itself"
_PARSED = "kvtier reads OpenAI's requests by itself"
_TOKENS = "how prompts become tokens is decided by kvtier's own settings"
_COUNTED = "kvtier counts what is in flight by itself"
_FLOW = "queueing is decided by kvtier's own settings"
_LISTED = (
    "endpoints without Kubernetes are given by --endpoints (kvtier epp) or --replicas "
    "(kvtier route)"
)

SILENT: Final = frozenset({"single-profile-handler"})
"""What kvtier does anyway."""

IGNORED: Final[Mapping[str, str]] = {
    "endpoint-notification-source": _SCRAPED,
    "k8s-notification-source": _SCRAPED,
    "dcgm-data-source": _SCRAPED,
    "dcgm-extractor": _SCRAPED,
    "models-data-source": _SCRAPED,
    "models-data-extractor": _SCRAPED,
    "file-discovery": _LISTED,
    "openai-parser": _PARSED,
    "anthropic-parser": _PARSED,
    "vertexai-parser": _PARSED,
    "vllmhttp-parser": _PARSED,
    "vllmgrpc-parser": _PARSED,
    "sglanghttp-parser": _PARSED,
    "passthrough-parser": _PARSED,
    "token-producer": _TOKENS,
    "tokenizer": _TOKENS,
    "inflight-load-producer": _COUNTED,
    "session-id-producer": "session-affinity-scorer reads the header by itself",
    "destination-endpoint-served-verifier": "who served is counted wherever a gateway tells it",
    "request-attribute-reporter": "kvtier explains its decisions by itself",
    "concurrency-detector": _FLOW,
    "global-strict-fairness-policy": _FLOW,
    "round-robin-fairness-policy": _FLOW,
    "program-aware-fairness": _FLOW,
    "fcfs-ordering-policy": _FLOW,
    "edf-ordering-policy": _FLOW,
    "slo-deadline-ordering-policy": _FLOW,
    "static-usage-limit-policy": _FLOW,
    "soft-reflective-ceiling-policy": _FLOW,
    "priority-holdback-policy": _FLOW,
    "eviction-priority-then-time-ordering": _FLOW,
    "priority-then-time-eviction-order-policy": _FLOW,
    "eviction-sheddable-filter": _FLOW,
    "sheddable-eviction-filter": _FLOW,
}
"""Plugin -> why nothing is lost without it."""

UNWEIGHTED: Final = (
    "prefix-cache-scorer counts all tiers alike; write the weights at a "
    "precise-prefix-cache-scorer, with this producer as its prefixMatchInfoProducerName"
)
"""Why weights of tiers do nothing at a producer."""

_APART = "kvtier does not split prefill from decode"
_PREDICTED = "kvtier has no trained predictor; expected-ttft-scorer reckons from measured rates"

REFUSED: Final[Mapping[str, str]] = {
    "prefill-filter": _APART,
    "encode-filter": _APART,
    "pd-profile-handler": _APART,
    "disagg-profile-handler": _APART,
    "data-parallel-profile-handler": "give each rank as an endpoint of its own",
    "disagg-headers-handler": _APART,
    "prefill-header-handler": _APART,
    "prefix-based-pd-decider": _APART,
    "always-disagg-pd-decider": _APART,
    "always-disagg-multimodal-decider": _APART,
    "latency-scorer": _PREDICTED,
    "predicted-latency-scorer": _PREDICTED,
    "slo-aware-routing": _PREDICTED,
    "slo-aware-profile-handler": _PREDICTED,
    "predicted-latency-producer": _PREDICTED,
    "slo-headroom-tier-filter": _PREDICTED,
    "latency-slo-admitter": _PREDICTED,
    "kv-cache-scorer": "write kv-cache-utilization-scorer",
    "low-queue-filter": "write utilization-detector",
    "least-queue-filter": "write queue-scorer",
    "least-kv-cache-filter": "write kv-cache-utilization-scorer",
    "decision-tree-filter": "write its filters into the profile, one after the other",
    "session-affinity-filter": "write session-affinity-scorer, with a large weight",
    "header-based-testing-filter": "start with --test-endpoint-selection",
    "probabilistic-admitter": "requests below priority 0 are shed while the fleet is saturated",
    "burst-prefix-cache-producer": "write approx-prefix-cache-producer",
    "header-profile-handler": "write one profile: the first is used",
    "by-label": "write label-selector-filter",
    "by-label-selector": "write label-selector-filter",
    "utilization-filter": "write utilization-detector",
}
"""Plugin -> why it is not there, or what to write."""

SECTIONS: Final[Mapping[str, str]] = {
    "featureGates": "none of them changes what kvtier does",
    "dataLayer": f"{_SCRAPED}; {_LISTED}",
    "data": _SCRAPED,
    "flowControl": _FLOW,
    "requestHandler": _PARSED,
    "saturationDetector": "a utilization-detector that is declared says when the fleet is full",
    "parser": _PARSED,
}
"""Sections of the file that do nothing here, and why."""
