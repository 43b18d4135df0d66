"""A client's connection: requests in, answers out, one after the other.

Why our own protocol and not a server library's: one that makes an object of every message and a
wake-up of every chunk cost more than all that the router does besides.

Invariants: whatever bytes arrive, the answer is an OpenAI-style error or a closed connection; what
a client sends, and leaves unread, is bounded in time and in bytes; requests that come at once are
answered in turn; a client that goes away cancels what is done for it. Who ends the half it sends on
has gone away: nothing tells the one from the other.
"""

import asyncio
import logging
import select
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Final, cast

import msgspec

from kvtier.router.replica.exchange import ReplicaExchange
from kvtier.router.request.message import Fields
from kvtier.router.request.refusals import Refusal, invalid
from kvtier.router.route import response as responses
from kvtier.router.route.request import HttpRequest, RequestReader
from kvtier.router.route.response import CutOff, Framing, HttpResponse, Outgoing

_log = logging.getLogger(__name__)

LINGER_S: Final = 5.0
"""How long what is left of a refused body is read and dropped, so that the refusal is seen."""
FLUSH_S: Final = 60.0
_RESET: Final = struct.pack("ii", 1, 0)
"""Linger for 0 s: closing sends a reset instead of an end."""
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_FAR: Final = float("inf")


class ConnectionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Of one connection, in seconds and bytes."""

    head_timeout_s: float
    keep_alive_s: float
    max_body_bytes: int


class ClientConnection(asyncio.Protocol):
    """One of them. A handler returns a HttpResponse, or None after `begin`."""

    def __init__(self, front: "Front", limits: ConnectionLimits) -> None:
        self._front = front
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._reader = RequestReader(limits.max_body_bytes, self._welcome)
        self._transport: asyncio.Transport | None = None
        self._tls_socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        self._outgoing: Outgoing | None = None
        self._has_begun = False
        self._is_switched = False
        self._is_full = False
        self._lingers = False
        self._flushed_by_s = 0.0
        self._deadline_s = _FAR
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = _FAR

    @property
    def busy(self) -> bool:
        """Whether a request arrives, is answered, or waits for its answer to be taken."""
        return self._task is not None or self._is_arriving or self._is_unsent

    def let_go(self) -> None:
        """End, unless there is a request: then behind its answer."""
        if self._task is None and not self._is_arriving and not self._reader.requests:
            self.close()

    def close(self) -> None:
        """End once the client has taken what was written; it has FLUSH_S for that."""
        if self._transport is not None:
            self._transport.close()
            self._due(FLUSH_S)

    def cut_off(self) -> None:
        """End at once, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()

    def begin(
        self, request: HttpRequest, exchange: ReplicaExchange, fields: Fields, idle_s: float
    ) -> Outgoing:
        """Pass an answer on that has begun; `ended` of what is returned has to be awaited."""
        head = exchange.head
        assert head is not None
        assert self._transport is not None
        self._has_begun = True
        framing = responses.framing(head, is_modern=request.is_modern)
        request.keeps_alive &= framing is not Framing.CONNECTION
        start = responses.passed(head, fields, framing, closes=not self._keeps_alive(request))
        is_chunked = framing is Framing.CHUNKS
        outgoing = Outgoing(self._transport, exchange, is_chunked=is_chunked, idle_s=idle_s)
        self._outgoing = outgoing
        self._transport.write(start)
        exchange.pass_to(outgoing)
        if self._is_full:
            outgoing.hold()  # by its head, or before it: the replica has just been let go on
        if framing is Framing.UPGRADE:
            self._switch()
        return outgoing

    # -- asyncio.Protocol ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Its first request is due."""
        # uvloop's transports are no asyncio.Transport by inheritance.
        self._transport = cast(asyncio.Transport, transport)
        if self._front.is_closing:
            self.cut_off()  # its handshake has taken longer than the server has listened
            return
        self._front.connections.add(self)
        if (of := transport.get_extra_info("socket")) is not None:
            # A client that is gone without a word would hold a replica's stream for ever.
            of.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if transport.get_extra_info("sslcontext") is not None:
            self._tls_socket = of
        self._due(self._limits.head_timeout_s)

    def connection_lost(self, reason: BaseException | None) -> None:
        """Nothing is due any more."""
        self._front.connections.discard(self)
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        self._reader.close()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._is_full = True
        if self._outgoing is not None:
            self._outgoing.hold()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._is_full = False
        if self._outgoing is not None:
            self._outgoing.go_on()
        elif self._task is None:
            self._go_on()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        reader = self._reader
        if reader.fault or self._is_ending:
            return
        if reader.beyond is not None:
            self._pass_beyond(data)
            return
        reader.feed(data)
        self._next()

    # -- ours ------------------------------------------------------------------------------

    @property
    def _is_ending(self) -> bool:
        """Whether no request is read any more."""
        return self._lingers or self._transport is None or self._transport.is_closing()

    @property
    def _is_arriving(self) -> bool:
        return self._reader.is_amid and not self._is_ending

    @property
    def _is_unsent(self) -> bool:
        """Whether something is written that the client's side has not taken."""
        if self._transport is None:
            return False
        if self._transport.get_write_buffer_size():
            return True
        # TLS does not count what has left it; that waits only for a socket that takes nothing.
        return self._tls_socket is not None and not _takes(self._tls_socket)

    def _pass_beyond(self, data: bytes) -> None:
        """What is none of HTTP's: to the replica, or kept until there is one."""
        transport, reader = self._transport, self._reader
        assert transport is not None
        assert reader.beyond is not None
        if self._is_switched and self._outgoing is not None:
            if not self._outgoing.send_back(data, transport.resume_reading):
                transport.pause_reading()
            return
        reader.beyond += data
        self._hold_client()

    def _switch(self) -> None:
        """From now on both sides speak another protocol."""
        assert self._transport is not None
        kept, self._reader.beyond = self._reader.beyond or b"", b""
        self._is_switched = True
        if not self._transport.is_reading():
            self._transport.resume_reading()
        if kept:
            self._pass_beyond(kept)

    def _next(self) -> None:
        """Answer the request that has waited longest; without one, wait for it."""
        reader = self._reader
        # Who takes no answer gets no further one to hold for him.
        if self._task is None and not self._is_full:
            if reader.requests:
                self._deadline_s = _FAR
                self._has_begun = False
                self._task = self._loop.create_task(self._answer(reader.take()))
            elif reader.fault:
                self._refuse_bytes()
            elif reader.is_amid:
                head_s = self._limits.head_timeout_s
                if self._deadline_s > self._loop.time() + head_s:
                    self._due(head_s)
        self._hold_client()

    def _hold_client(self) -> None:
        """Read as long as there is room; who is not read is not seen to go away, either."""
        transport = self._transport
        assert transport is not None
        if self._reader.is_full:
            transport.pause_reading()
        elif not transport.is_reading():
            transport.resume_reading()

    async def _answer(self, request: HttpRequest) -> None:
        try:
            found = await self._front.handler(self, request)
            if found is not None:
                self._write(request, found)
        except asyncio.CancelledError:
            self._task = None
            self.cut_off()
            raise
        except CutOff:
            self._break_off(request)
        except Exception as error:
            self._fail(request, error)
        self._outgoing = None
        self._task = None
        self._after(request)

    def _after(self, request: HttpRequest) -> None:
        """The request has been answered: the next one, or the end of the connection."""
        self._flushed_by_s = self._loop.time() + FLUSH_S
        if self._is_ending:
            return
        if not self._keeps_alive(request):
            if request.is_whole:
                self.close()
            else:
                self._linger()
        elif self._is_full:
            self._due(FLUSH_S)
        else:
            self._go_on()

    def _go_on(self) -> None:
        """To the next request; the client has taken what there was."""
        if self._is_ending:
            return
        self._due(self._limits.keep_alive_s)
        self._next()

    def _keeps_alive(self, request: HttpRequest) -> bool:
        return request.keeps_alive and request.is_whole and not self._front.is_closing

    def _write(self, request: HttpRequest, found: HttpResponse) -> None:
        if self._transport is None:
            return
        closes = not self._keeps_alive(request)
        head = responses.head(found, closes=closes)
        shows = responses.has_body(request.method, found.status)
        self._transport.write(head + found.body if shows else head)

    def _linger(self) -> None:
        """Say that this is the end; but drop what still comes, so that the client can hear it.

        To close with bytes unread would send a reset, and that may overtake the answer.
        """
        assert self._transport is not None
        self._lingers = True
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._due(LINGER_S)

    def _refuse_bytes(self) -> None:
        """What came is no HTTP."""
        assert self._transport is not None
        refusal = invalid(f"the request is not HTTP as it should be: {self._reader.fault}")
        made = responses.of_refusal(refusal)
        self._transport.write(responses.head(made, closes=True) + made.body)
        self._flushed_by_s = self._loop.time() + FLUSH_S
        self._linger()

    def _break_off(self, request: HttpRequest) -> None:
        """Who reads HTTP/1.0 takes the end of the connection for that of the answer: reset it."""
        transport = self._transport
        if transport is None:
            return
        if request.is_modern:
            self.close()
            return
        of = transport.get_extra_info("socket")
        if of is not None:
            of.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        transport.abort()

    def _fail(self, request: HttpRequest, error: Exception) -> None:
        _log.error("a request ended in an error of the router", exc_info=error)
        if self._has_begun:
            self._break_off(request)
            return
        kind = "internal_error"
        request.keeps_alive = False
        self._write(
            request, responses.of_refusal(Refusal(500, "the router failed", kind=kind, code=kind))
        )

    def _welcome(self) -> None:
        if self._transport is not None:
            self._transport.write(_CONTINUE)

    # -- time ------------------------------------------------------------------------------

    def _due(self, seconds: float) -> None:
        """Something has to happen by then. The timer is moved only where it would be too late."""
        self._deadline_s = self._loop.time() + seconds
        if self._deadline_s < self._timer_s:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_s = self._deadline_s
            self._timer = self._loop.call_at(self._timer_s, self._look)

    def _look(self) -> None:
        self._timer, self._timer_s = None, _FAR
        if self._deadline_s == _FAR:
            return
        now_s = self._loop.time()
        left_s = self._deadline_s - now_s
        if left_s <= 0 and self._is_unsent:
            # An answer is on its way: this is no idle client, but a slow one.
            left_s = min(self._flushed_by_s - now_s, self._limits.keep_alive_s)
        if left_s > 0:
            self._due(left_s)
        else:
            self.cut_off()


def _takes(of: socket.socket) -> bool:
    poll = select.poll()
    poll.register(of, select.POLLOUT)
    return bool(poll.poll(0))


Handler = Callable[[ClientConnection, HttpRequest], Awaitable[HttpResponse | None]]


class Front:
    """Makes connections, and ends them."""

    def __init__(self, handler: Handler, limits: ConnectionLimits) -> None:
        self.handler = handler
        self.connections: set[ClientConnection] = set()
        self.is_closing = False
        self._limits = limits

    def __call__(self) -> ClientConnection:
        """For a new connection."""
        return ClientConnection(self, self._limits)

    def busy(self) -> int:
        """Connections that have a request, or an answer that is not sent."""
        return sum(connection.busy for connection in self.connections)

    def let_go(self) -> None:
        """Close those that wait for a request; the others close after their answer."""
        self.is_closing = True
        for connection in tuple(self.connections):
            connection.let_go()

    async def shutdown(self) -> None:
        """Cut off whoever is left."""
        self.is_closing = True
        while self.connections:
            for connection in tuple(self.connections):
                connection.cut_off()
            await asyncio.sleep(0)
