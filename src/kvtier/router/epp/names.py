"""The words of the endpoint picker protocol: headers, metadata, health services.

Both generations of the field are understood: `x-gateway-*` of the Gateway API Inference
Extension, `x-llm-d-*` of llm-d's router since 0.8; where both are there, the newer counts.
Invariant: a header that says where a request goes is never taken from a client.
"""

from collections.abc import Mapping
from typing import Final

DESTINATION: Final = "x-gateway-destination-endpoint"
"""The header, and the key of the dynamic metadata: `host:port[,host:port...]`, best first."""
SERVED: Final = "x-gateway-destination-endpoint-served"
"""Metadata of a response: who answered."""
SUBSET: Final = "x-gateway-destination-endpoint-subset"
LB: Final = "envoy.lb"
"""The namespace of `DESTINATION` and `SERVED`."""
SUBSET_HINT: Final = "envoy.lb.subset_hint"
"""The namespace of `SUBSET`."""
UPSTREAM_ADDRESS: Final = "upstream.address"
"""The response attribute that plain Envoy says who answered with."""

TEST_SELECTION: Final = "test-epp-endpoint-selection"
"""Of the conformance tests: `ip[,ip...]` that the picker has to pick."""
DROPPED_REASON: Final = "x-llm-d-request-dropped-reason"
REQUEST_ID: Final = "x-request-id"

_MODEL_REWRITE: Final = ("x-llm-d-model-name-rewrite", "x-gateway-model-name-rewrite")
_OBJECTIVE: Final = ("x-llm-d-inference-objective", "x-gateway-inference-objective")
_OWNED_PREFIXES: Final = ("x-gateway-destination-", "x-conformance-test-")

HEALTH_SERVICES: Final = (
    "",
    "liveness",
    "readiness",
    "envoy.service.ext_proc.v3.ExternalProcessor",
    "inference-extension",
)
"""Names that gateways and Kubernetes probe; the last is that of the first generation."""
LIVENESS: Final = "liveness"
"""Serving as long as the process answers; the others say whether it can choose."""


def is_owned(name: str) -> bool:
    """Whether a header (in lower case) is the gateway's or ours to set, and no client's."""
    return name.startswith(_OWNED_PREFIXES)


def model_rewrite(headers: Mapping[str, str]) -> str:
    """The model that the gateway wants asked instead; empty: the client's own."""
    return _first(headers, _MODEL_REWRITE)


def objective(headers: Mapping[str, str]) -> str:
    """Name of the request's objective; empty: none."""
    return _first(headers, _OBJECTIVE)


def _first(headers: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((headers[name] for name in names if headers.get(name)), "")
