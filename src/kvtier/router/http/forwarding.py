"""One exchange with one replica, and its answer on the way to the client.

Invariants: bytes of a body are passed on as they came; the client's slowness holds the replica
back; an answer that cannot be finished is cut off, never ended as if it were whole; whatever
happens, the connection to the replica is given back or closed.
"""

import asyncio
import socket
import struct
from collections.abc import Mapping
from typing import Final

import aiohttp
import msgspec
from aiohttp import web
from multidict import CIMultiDict

from kvtier.router.http import headers
from kvtier.router.http.connection import CutOff
from kvtier.router.serving.refusals import Refusal, invalid, late, unavailable, unreachable
from kvtier.router.serving.upstream import Upstream

BUSY: Final = 503
"""The replica has taken nothing: another one may."""
MAX_BUSY_BYTES: Final = 64 * 1024
_RESET: Final = struct.pack("ii", 1, 0)
"""Linger for 0 s: closing sends a reset instead of an end."""
_REARM_S: Final = 1.0
"""The idle timer is moved at most so often: moving it costs more than writing a chunk."""


class Undelivered(Exception):
    """The client has seen nothing yet, so that another replica may be asked."""

    def __init__(self, refusal: Refusal, *, taken: bool, busy: web.Response | None = None) -> None:
        """`taken`: the replica may have begun to work. `busy`: its own words, if it had any."""
        super().__init__(str(refusal))
        self.refusal = refusal
        self.taken = taken
        self.busy = busy


class Message(msgspec.Struct, frozen=True):
    """What is sent to a replica, to this one or to the next."""

    method: str
    target: str
    headers: CIMultiDict[str]
    body: bytes | None


class Answer(msgspec.Struct, frozen=True):
    """A replica's answer that has begun. `first` is empty where it has no body."""

    response: aiohttp.ClientResponse
    first: bytes


async def ask(upstream: Upstream, message: Message, first_byte_s: float, name: str) -> Answer:
    """Send, and wait for the first bytes of the answer's body.

    Until then nothing goes to the client, so that a replica which dies with a request can be
    replaced. Raises Undelivered; Refusal (504) after `first_byte_s`, since what takes one
    replica so long would take the next as long.
    """
    response = None
    whole = False
    try:
        async with asyncio.timeout(first_byte_s or None):
            response = await upstream.send(
                message.method, message.target, message.headers, message.body
            )
            first = await response.content.readany()
        whole = True
        return Answer(response, first)
    except aiohttp.InvalidURL as error:
        raise invalid(f"the path cannot be passed on: {message.target[:80]!r}") from error
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        refusal = unavailable(f"replica {name} cannot be reached")
        raise Undelivered(refusal, taken=False) from error
    except TimeoutError:
        raise late(first_byte_s) from None
    except (aiohttp.ClientError, OSError) as error:
        refusal = unreachable(f"replica {name} broke off before it answered")
        raise Undelivered(refusal, taken=True) from error
    finally:
        if response is not None and not whole:
            response.close()


async def set_aside(answer: Answer, extra: Mapping[str, str]) -> Undelivered:
    """A busy replica's answer, kept for the case that nobody else does better."""
    response = answer.response
    out = headers.to_client(response.headers)
    out.update(extra)
    body = answer.first
    try:
        body += await response.content.read(MAX_BUSY_BYTES)
    except (aiohttp.ClientError, OSError):
        body = b""
    finally:
        response.close()
    busy = web.Response(status=response.status, body=body, headers=out)
    return Undelivered(unavailable("the replica is busy"), taken=False, busy=busy)


async def pass_on(
    request: web.BaseRequest, answer: Answer, extra: Mapping[str, str], idle_s: float
) -> web.StreamResponse:
    """Hand the answer to the client as it arrives.

    Raises CutOff when it cannot be finished: the replica died, or nothing moved for `idle_s`.
    """
    response = answer.response
    out_headers = headers.to_client(response.headers)
    out_headers.update(extra)
    length = response.content_length
    if length == len(answer.first):
        # The whole of it is here: one write instead of two, and no timer.
        response.close()
        return web.Response(
            status=response.status, reason=response.reason, headers=out_headers, body=answer.first
        )
    out = web.StreamResponse(status=response.status, reason=response.reason, headers=out_headers)
    out.content_length = length
    try:
        await out.prepare(request)
        await _pump(answer, out, idle_s)
        await out.write_eof()
    except aiohttp.ClientConnectionResetError as error:
        raise CutOff("the client has gone", by_client=True) from error
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        _reset_if_old(request)
        raise CutOff(f"the answer broke off: {error}") from error
    finally:
        response.close()
    return out


async def _pump(answer: Answer, out: web.StreamResponse, idle_s: float) -> None:
    loop = asyncio.get_running_loop()
    content = answer.response.content
    chunk = answer.first
    armed_s = loop.time()
    async with asyncio.timeout_at(armed_s + idle_s if idle_s else None) as limit:
        while chunk:
            await out.write(chunk)
            if idle_s and (now_s := loop.time()) - armed_s > _REARM_S:
                armed_s = now_s
                limit.reschedule(now_s + idle_s)
            chunk = await content.readany()


def _reset_if_old(request: web.BaseRequest) -> None:
    """Reset a client of HTTP/1.0: it takes the end of the connection for that of the answer.

    Others see that the end is missing when CutOff closes their connection.
    """
    transport = request.transport
    if transport is None or request.version >= aiohttp.HttpVersion11:
        return
    socket_of = transport.get_extra_info("socket")
    if socket_of is not None:
        socket_of.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()
