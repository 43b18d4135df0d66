"""Headers on their way through: what stays with one connection, what a client may not say.

Invariant: where a request goes is decided here and nowhere outside: headers that name a
destination are taken away on the way in, and on the way out they are the router's own.
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
# RFC 9110, 7.6.1; length and host are written anew for each connection.
_HOP: Final = _bytes(
    *("connection", "keep-alive", "proxy-connection", "proxy-authenticate"),
    *("proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade"),
    *("content-length", "host", "expect"),
)
# Where gateways, sidecars and engines read a destination from.
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


def request_id(fields: Fields) -> str:
    """The client's own, if it is a plain one; else a new one."""
    given = first_value(fields, REQUEST_ID.encode())
    return given if _ID.fullmatch(given) else clock.unique_id()


def replica_headers(fields: Fields, request: str, key: str | None, *, keeps_key: bool) -> Fields:
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


def client_headers(fields: Fields, extra: Mapping[str, str]) -> Fields:
    """What a client gets to see of a replica's answer; `extra` takes the place of its like."""
    own = [
        (name.lower().encode(), value.encode("latin-1", "replace")) for name, value in extra.items()
    ]
    dropped = _OUTBOUND | _named(fields) | {name for name, _ in own}
    return [field for field in fields if field[0] not in dropped] + own


def plain_headers(fields: Fields) -> dict[str, str]:
    """For choosing: names in lower case, the last of each."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in fields}


def _named(fields: Fields) -> Set[bytes]:
    """Headers that `Connection` declares to be of this hop."""
    found: Set[bytes] = frozenset()
    for name, value in fields:
        if name == _CONNECTION:
            found |= {token.strip().lower() for token in value.split(b",")}
    return found


BUSY: Final = 503
"""The replica has taken nothing: another one may."""
MAX_BUSY_BYTES: Final = 64 * 1024
_BUSY_S: Final = 5.0
"""For the rest of what a busy replica says."""


class Undelivered(Exception):
    """The client has seen nothing yet, so that another replica may be asked."""

    def __init__(self, refusal: Refusal, *, taken: bool, busy: HttpResponse | None = None) -> None:
        """`taken`: the replica may have begun to work. `busy`: its own words, if it had any."""
        super().__init__(str(refusal))
        self.refusal = refusal
        self.taken = taken
        self.busy = busy


class Message(msgspec.Struct, frozen=True):
    """What is sent to a replica, to this one or to the next."""

    method: str
    target: str
    fields: bytes
    """Lines of a head."""
    body: Body
    upgrades: bool = False


class Answer(msgspec.Struct, frozen=True):
    """A replica's answer that has begun; who has it closes the exchange."""

    head: Head
    exchange: ReplicaExchange


async def ask(upstream: Upstream, message: Message, first_byte_s: float, name: str) -> Answer:
    """Send, and wait for the first bytes of the answer's body.

    Raises Undelivered; Refusal (504) after `first_byte_s`, since what takes one replica so long
    would take the next as long.
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
        refusal = unreachable(f"replica {name} broke off before it answered")
        raise Undelivered(refusal, taken=True) from error
    finally:
        if exchange is not None and not begun:
            exchange.close()


async def _send(upstream: Upstream, message: Message) -> ReplicaExchange:
    if message.upgrades:
        return await upstream.upgrade(message.target, message.fields)
    return await upstream.send(message.method, message.target, message.fields, message.body)


async def set_aside(answer: Answer, extra: Mapping[str, str]) -> Undelivered:
    """A busy replica's answer, kept for the case that nobody else does better."""
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
    """The answer, all of it."""
    head = answer.head
    return HttpResponse(head.status, body, client_headers(head.fields, extra), head.reason)
