"""Headers on their way through: what stays with one connection, what a client may not say.

Invariant: where a request goes is decided here and nowhere outside: headers that name a
destination are taken away on the way in, and on the way out they are the router's own.
"""

import re
from collections.abc import Iterable
from typing import Final

from multidict import CIMultiDict, CIMultiDictProxy

from kvtier import clock

REQUEST_ID: Final = "x-request-id"
STRATEGY: Final = "routing-strategy"
TARGET: Final = "target-pod"

# RFC 9110, 7.6.1; length and host are written anew for each connection.
_HOP: Final = frozenset(
    (
        *("connection", "keep-alive", "proxy-connection", "proxy-authenticate"),
        *("proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade"),
        *("content-length", "host", "expect"),
    )
)
# Where gateways, sidecars and engines read a destination from.
_DESTINATION: Final = frozenset(
    (
        *(TARGET, "target-pod-ip", STRATEGY, "test-epp-endpoint-selection"),
        *("x-data-parallel-rank", "x-data-parallel-host-port", "x-prefiller-host-port"),
        *("x-prefiller-url", "x-prefiller-hosts-ports", "x-encoder-hosts-ports"),
        *("external-filter", "x-conformance-test-served-endpoint"),
    )
)
_DESTINATION_PREFIXES: Final = (
    "x-gateway-destination-",
    "x-gateway-model-name-rewrite",
    "x-llm-d-model-name-rewrite",
    "x-envoy-",
    "x-kvtier-",
)
_OURS: Final = frozenset((TARGET, "target-pod-ip", STRATEGY, "request-id"))
_ID = re.compile(r"[!-~]{1,128}")


def request_id(headers: CIMultiDictProxy[str]) -> str:
    """The client's own, if it is a plain one; else a new one."""
    given = headers.get(REQUEST_ID, "")
    return given if _ID.fullmatch(given) else clock.unique_id()


def to_replica(
    headers: CIMultiDictProxy[str], request: str, key: str | None, *, keeps_key: bool
) -> CIMultiDict[str]:
    """What a replica gets to see.

    `key` is the replica's, and replaces the client's; without one the client's goes on only
    where it was not meant for the router (`keeps_key`).
    """
    dropped = _named(headers) if "connection" in headers else ()
    out: CIMultiDict[str] = CIMultiDict()
    for name, value in headers.items():
        low = name.lower()
        if low in _HOP or low in _DESTINATION or low in dropped or low == REQUEST_ID:
            continue
        if low.startswith("x-") and low.startswith(_DESTINATION_PREFIXES):
            continue
        if low in ("authorization", "x-api-key") and (key is not None or not keeps_key):
            continue
        out.add(name, value)
    out[REQUEST_ID] = request
    if key is not None:
        out["Authorization"] = f"Bearer {key}"
    return out


def to_client(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """What a client gets to see of a replica's answer."""
    dropped = _named(headers) if "connection" in headers else ()
    out: CIMultiDict[str] = CIMultiDict()
    for name, value in headers.items():
        low = name.lower()
        if low not in _HOP and low not in _OURS and low not in dropped:
            out.add(name, value)
    return out


def plain(headers: CIMultiDictProxy[str]) -> dict[str, str]:
    """For choosing: names in lower case, the last of each."""
    return {name.lower(): value for name, value in headers.items()}


def _named(headers: CIMultiDictProxy[str]) -> Iterable[str]:
    """Headers that `Connection` declares to be of this hop."""
    return {
        token.strip().lower()
        for value in headers.getall("connection")
        for token in value.split(",")
    }
