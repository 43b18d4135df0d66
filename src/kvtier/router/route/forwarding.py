"""Forwards a request to one replica: which headers pass, and the exchange until an answer begins.

Invariants: clients cannot choose the replica, so headers that name a destination are removed from
requests, and those in responses are the router's own; nothing is sent to the client before an
answer has begun, so that the request can be sent to another replica; whatever happens, the
connection to the replica is given back or closed.
"""

import asyncio
import re
from collections.abc import Mapping, Set
from typing import Final

import msgspec

from kvtier import clock
from kvtier.router.choose.record import STRATEGY
from kvtier.router.replica.connection import Body
from kvtier.router.replica.exchange import BrokenOff, Head, ReplicaExchange
from kvtier.router.replica.upstream import Unreachable, Upstream
from kvtier.router.request.message import Fields, first_value
from kvtier.router.request.refusals import Refusal, late, unavailable, unreachable
from kvtier.router.route.response import HttpResponse

REQUEST_ID: Final = "x-request-id"
TARGET_POD: Final = "target-pod"


def _bytes(*names: str) -> frozenset[bytes]:
    return frozenset(name.encode() for name in names)


_CONNECTION: Final = b"connection"
# The hop-by-hop headers (RFC 9110, 7.6.1), and those that are written anew for each connection.
_HOP: Final = _bytes(
    *("connection", "keep-alive", "proxy-connection", "proxy-authenticate"),
    *("proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade"),
    *("content-length", "host", "expect"),
)
# Gateways, sidecars and engines read a destination from these headers.
_DESTINATION: Final = _bytes(
    *(TARGET_POD, "target-pod-ip", STRATEGY, "test-epp-endpoint-selection"),
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
_OUTBOUND: Final = _HOP | _bytes(TARGET_POD, "target-pod-ip", STRATEGY, "request-id")
_ID = re.compile(r"[!-~]{1,128}")
BUSY: Final = 503
"""The status of a replica that has not taken the request; another replica may."""
MAX_BUSY_BYTES: Final = 64 * 1024
_BUSY_S: Final = 5.0
"""The time limit for reading the answer of a busy replica."""


def request_id(fields: Fields) -> str:
    """Return the client's request id if it is valid (visible ASCII), else a new one."""
    given = first_value(fields, REQUEST_ID.encode())
    return given if _ID.fullmatch(given) else clock.unique_id()


def replica_headers(fields: Fields, request: str, key: str | None, *, keeps_key: bool) -> Fields:
    """Return the headers of a request to a replica.

    `key` is the replica's API key and replaces the client's. Without it, the client's key is passed
    on only if it was not meant for the router (`keeps_key`).
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


def client_headers(fields: Fields, extra: Mapping[str, str]) -> Fields:
    """Return the headers of a replica's answer for the client; `extra` replaces and adds some."""
    own = [
        (name.lower().encode(), value.encode("latin-1", "replace")) for name, value in extra.items()
    ]
    dropped = _OUTBOUND | _named(fields) | {name for name, _ in own}
    return [field for field in fields if field[0] not in dropped] + own


def plain_headers(fields: Fields) -> dict[str, str]:
    """Return the headers as texts, for choosing a replica; the last of each name wins."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in fields}


def _named(fields: Fields) -> Set[bytes]:
    """Return the hop-by-hop headers that the `Connection` header names."""
    found: Set[bytes] = frozenset()
    for name, value in fields:
        if name == _CONNECTION:
            found |= {token.strip().lower() for token in value.split(b",")}
    return found


class Undelivered(Exception):
    """A replica did not answer, and the client has received nothing: another one may be asked."""

    def __init__(self, refusal: Refusal, *, taken: bool, busy: HttpResponse | None = None) -> None:
        """`taken`: the replica may have begun to work. `busy`: its answer, if it was busy."""
        super().__init__(str(refusal))
        self.refusal = refusal
        self.taken = taken
        self.busy = busy


class Message(msgspec.Struct, frozen=True):
    """A request as it is sent to replicas."""

    method: str
    target: str
    fields: bytes
    """The header lines."""
    body: Body
    upgrades: bool = False


class Answer(msgspec.Struct, frozen=True):
    """A replica's answer that has begun. Its owner closes the exchange."""

    head: Head
    exchange: ReplicaExchange


async def ask(upstream: Upstream, message: Message, first_byte_s: float, name: str) -> Answer:
    """Send a request and wait for the first bytes of the body of the answer.

    Raises Undelivered. Raises Refusal (504) after `first_byte_s`: another replica would take as
    long.
    """
    exchange = None
    begun = False
    try:
        exchange = await _send(upstream, message)
        head = await exchange.begin(first_byte_s)
        begun = True
        return Answer(head, exchange)
    except Unreachable as error:
        refusal = unavailable(f"replica {name} cannot be reached")
        raise Undelivered(refusal, taken=False) from error
    except TimeoutError:
        raise late(first_byte_s) from None
    except BrokenOff as error:
        refusal = unreachable(f"replica {name} disconnected before it answered")
        raise Undelivered(refusal, taken=True) from error
    finally:
        if exchange is not None and not begun:
            exchange.close()


async def _send(upstream: Upstream, message: Message) -> ReplicaExchange:
    if message.upgrades:
        return await upstream.upgrade(message.target, message.fields)
    return await upstream.send(message.method, message.target, message.fields, message.body)


async def set_aside(answer: Answer, extra: Mapping[str, str]) -> Undelivered:
    """Read the answer of a busy replica, for the case that no other replica takes the request."""
    try:
        async with asyncio.timeout(_BUSY_S):
            body = await answer.exchange.read(MAX_BUSY_BYTES)
    except (BrokenOff, TimeoutError, ValueError):
        body = b""
    finally:
        answer.exchange.close()
    busy = whole(answer, extra, body)
    return Undelivered(unavailable("the replica is busy"), taken=False, busy=busy)


def whole(answer: Answer, extra: Mapping[str, str], body: bytes) -> HttpResponse:
    """Return an answer with its complete body as a response."""
    head = answer.head
    return HttpResponse(head.status, body, client_headers(head.fields, extra), head.reason)
