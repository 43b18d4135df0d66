"""Plugins and sections of other endpoint pickers that kvtier ignores or rejects, with reasons.

A configuration written for llm-d or the Gateway API Inference Extension must load, and must say
which of its parts have no effect. Invariant: ignoring a plugin changes no decision; a plugin that
would change decisions and is not implemented is rejected.
"""

from collections.abc import Mapping
from typing import Final

_SCRAPED = "kvtier always scrapes the engines' metrics"
_PARSED = "kvtier always parses OpenAI requests"
_TOKENS = "kvtier's own settings determine tokenization"
_COUNTED = "kvtier always counts the requests in flight"
_FLOW = "kvtier's own settings determine queueing"
_LISTED = (
    "without Kubernetes, name the endpoints with --endpoints (kvtier epp) or --replicas "
    "(kvtier route)"
)

SILENT: Final = frozenset({"single-profile-handler"})
"""Plugins that describe what kvtier does in any case, and are ignored without a warning."""

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
    "session-id-producer": "session-affinity-scorer reads the header itself",
    "destination-endpoint-served-verifier": "kvtier counts the served endpoint if it is reported",
    "request-attribute-reporter": "kvtier has its own explanations of decisions",
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
"""Plugin -> the reason why ignoring it changes no decision."""

UNWEIGHTED: Final = (
    "prefix-cache-scorer counts all tiers alike; set the weights on a "
    "precise-prefix-cache-scorer whose prefixMatchInfoProducerName is this producer"
)
"""The reason why tier weights of a producer are ignored."""

_DISAGGREGATED = "kvtier does not disaggregate prefill and decode"
_PREDICTED = "kvtier has no trained predictor; use expected-ttft-scorer, based on measured rates"

REFUSED: Final[Mapping[str, str]] = {
    "prefill-filter": _DISAGGREGATED,
    "encode-filter": _DISAGGREGATED,
    "pd-profile-handler": _DISAGGREGATED,
    "disagg-profile-handler": _DISAGGREGATED,
    "data-parallel-profile-handler": "declare each rank as a separate endpoint",
    "disagg-headers-handler": _DISAGGREGATED,
    "prefill-header-handler": _DISAGGREGATED,
    "prefix-based-pd-decider": _DISAGGREGATED,
    "always-disagg-pd-decider": _DISAGGREGATED,
    "always-disagg-multimodal-decider": _DISAGGREGATED,
    "latency-scorer": _PREDICTED,
    "predicted-latency-scorer": _PREDICTED,
    "slo-aware-routing": _PREDICTED,
    "slo-aware-profile-handler": _PREDICTED,
    "predicted-latency-producer": _PREDICTED,
    "slo-headroom-tier-filter": _PREDICTED,
    "latency-slo-admitter": _PREDICTED,
    "kv-cache-scorer": "use kv-cache-utilization-scorer",
    "low-queue-filter": "use utilization-detector",
    "least-queue-filter": "use queue-scorer",
    "least-kv-cache-filter": "use kv-cache-utilization-scorer",
    "decision-tree-filter": "list its filters in the profile, one after the other",
    "session-affinity-filter": "use session-affinity-scorer with a large weight",
    "header-based-testing-filter": "start with --test-endpoint-selection",
    "probabilistic-admitter": "requests below priority 0 are shed while the fleet is saturated",
    "burst-prefix-cache-producer": "use approx-prefix-cache-producer",
    "header-profile-handler": "keep one profile; the first one is used",
    "by-label": "use label-selector-filter",
    "by-label-selector": "use label-selector-filter",
    "utilization-filter": "use utilization-detector",
}
"""Plugin -> the reason why it is rejected, or what to use instead."""

SECTIONS: Final[Mapping[str, str]] = {
    "featureGates": "kvtier has no feature gates",
    "dataLayer": f"{_SCRAPED}; {_LISTED}",
    "data": _SCRAPED,
    "flowControl": _FLOW,
    "requestHandler": _PARSED,
    "saturationDetector": "declare a utilization-detector to set when the fleet is saturated",
    "parser": _PARSED,
}
"""Section of the file -> the reason why it is ignored."""
