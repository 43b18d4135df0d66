"""Headers on their way through: what stays with one connection, what a client may not say.

Invariant: where a request goes is decided here and nowhere outside: headers that name a
destination are taken away on the way in, and on the way out they are the router's own.
"""

import re
from collections.abc import Mapping, Set
from typing import Final

from kvtier import clock
from kvtier.router.choose.record import STRATEGY
from kvtier.router.request.fields import Fields, text

REQUEST_ID: Final = "x-request-id"
TARGET: Final = "target-pod"


def _bytes(*names: str) -> frozenset[bytes]:
    return frozenset(name.encode() for name in names)


_CONNECTION: Final = b"connection"
# RFC 9110, 7.6.1; length and host are written anew for each connection.
_HOP: Final = _bytes(
    *("connection", "keep-alive", "proxy-connection", "proxy-authenticate"),
    *("proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade"),
    *("content-length", "host", "expect"),
)
# Where gateways, sidecars and engines read a destination from.
_DESTINATION: Final = _bytes(
    *(TARGET, "target-pod-ip", STRATEGY, "test-epp-endpoint-selection"),
    *("x-data-parallel-rank", "x-data-parallel-host-port", "x-prefiller-host-port"),
    *("x-prefiller-url", "x-prefiller-hosts-ports", "x-encoder-hosts-ports"),
    *("external-filter", "x-conformance-test-served-endpoint"),
)
_DESTINATION_PREFIXES: Final = (
    b"x-gateway-destination-",
    b"x-gateway-model-name-rewrite",
    b"x-llm-d-model-name-rewrite",
    b"x-envoy-",
    b"x-kvtier-",
)
_KEYS: Final = _bytes("authorization", "x-api-key")
_INBOUND: Final = _HOP | _DESTINATION | _bytes(REQUEST_ID)
_OUTBOUND: Final = _HOP | _bytes(TARGET, "target-pod-ip", STRATEGY, "request-id")
_ID = re.compile(r"[!-~]{1,128}")


def request_id(fields: Fields) -> str:
    """The client's own, if it is a plain one; else a new one."""
    given = text(fields, REQUEST_ID.encode())
    return given if _ID.fullmatch(given) else clock.unique_id()


def to_replica(fields: Fields, request: str, key: str | None, *, keeps_key: bool) -> Fields:
    """What a replica gets to see.

    `key` is the replica's, and replaces the client's; without one the client's goes on only
    where it was not meant for the router (`keeps_key`).
    """
    dropped = _INBOUND | _named(fields)
    if key is not None or not keeps_key:
        dropped |= _KEYS
    out = [
        (name, value)
        for name, value in fields
        if name not in dropped
        and not (name.startswith(b"x-") and name.startswith(_DESTINATION_PREFIXES))
    ]
    out.append((REQUEST_ID.encode(), request.encode()))
    if key is not None:
        out.append((b"authorization", b"Bearer " + key.encode()))
    return out


def to_client(fields: Fields, extra: Mapping[str, str]) -> Fields:
    """What a client gets to see of a replica's answer; `extra` takes the place of its like."""
    own = [
        (name.lower().encode(), value.encode("latin-1", "replace")) for name, value in extra.items()
    ]
    dropped = _OUTBOUND | _named(fields) | {name for name, _ in own}
    return [field for field in fields if field[0] not in dropped] + own


def plain(fields: Fields) -> dict[str, str]:
    """For choosing: names in lower case, the last of each."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in fields}


def _named(fields: Fields) -> Set[bytes]:
    """Headers that `Connection` declares to be of this hop."""
    found: Set[bytes] = frozenset()
    for name, value in fields:
        if name == _CONNECTION:
            found |= {token.strip().lower() for token in value.split(b",")}
    return found
