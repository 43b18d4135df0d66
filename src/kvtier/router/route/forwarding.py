"""One exchange with one replica, until its answer has begun.

Invariants: nothing goes to the client before an answer has begun, so that a replica which dies
with a request can be replaced; whatever happens, the connection to the replica is given back or
closed.
"""

import asyncio
from collections.abc import Mapping
from typing import Final

import msgspec

from kvtier.router.replica.connection import Body
from kvtier.router.replica.exchange import BrokenOff, Exchange, Head
from kvtier.router.replica.upstream import Unreachable, Upstream
from kvtier.router.request.refusals import Refusal, late, unavailable, unreachable
from kvtier.router.route import headers
from kvtier.router.route.response import Response

BUSY: Final = 503
"""The replica has taken nothing: another one may."""
MAX_BUSY_BYTES: Final = 64 * 1024
_BUSY_S: Final = 5.0
"""For the rest of what a busy replica says."""


class Undelivered(Exception):
    """The client has seen nothing yet, so that another replica may be asked."""

    def __init__(self, refusal: Refusal, *, taken: bool, busy: Response | None = None) -> None:
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
    exchange: Exchange


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


async def _send(upstream: Upstream, message: Message) -> Exchange:
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


def whole(answer: Answer, extra: Mapping[str, str], body: bytes) -> Response:
    """The answer, all of it."""
    head = answer.head
    return Response(head.status, body, headers.to_client(head.fields, extra), head.reason)
