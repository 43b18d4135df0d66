"""A client's connection: reads requests and answers them one after the other.

The router has its own asyncio protocol, because server libraries that create an object per message
and a wake-up per chunk cost more than everything else the router does.

Invariants: whatever bytes arrive, the response is an OpenAI-style error or a closed connection;
what a client sends, or does not read, is bounded in time and in bytes; pipelined requests are
answered in order; a client that disconnects cancels its request. A client that half-closes its
connection counts as disconnected, because the server cannot tell the two apart.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Final, cast

import msgspec

from kvtier.router.replica.exchange import ReplicaExchange
from kvtier.router.request.message import Fields
from kvtier.router.request.refusals import Refusal, invalid
from kvtier.router.route import response as responses
from kvtier.router.route.request import HttpRequest, RequestReader
from kvtier.router.route.response import CutOff, Framing, HttpResponse, OutgoingBody

_log = logging.getLogger(__name__)

LINGER_S: Final = 5.0
"""How long the rest of a refused body is read and dropped, so that the client sees the refusal."""
FLUSH_S: Final = 60.0
"""How long a client has to read a complete response."""
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_FAR: Final = float("inf")


class ConnectionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of one connection, in seconds and bytes."""

    head_timeout_s: float
    keep_alive_s: float
    max_body_bytes: int


class ClientConnection(asyncio.Protocol):
    """A connection of a client.

    The handler of its owner answers each request: it returns an HttpResponse, or None if it has
    streamed the response with `begin`.
    """

    def __init__(self, owner: "ClientConnections", limits: ConnectionLimits) -> None:
        self._owner = owner
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._reader = RequestReader(limits.max_body_bytes, self._send_continue)
        self._transport: asyncio.Transport | None = None
        self._tls_socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        self._outgoing: OutgoingBody | None = None
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
        """Whether a request is arriving or being answered, or a response is not yet sent."""
        return self._task is not None or self._is_arriving or self._is_unsent

    def close_if_idle(self) -> None:
        """Close the connection unless it has a request; it then closes after the response."""
        if self._task is None and not self._is_arriving and not self._reader.requests:
            self.close()

    def close(self) -> None:
        """Close the connection once the client has read what was written, within FLUSH_S."""
        if self._transport is not None:
            self._transport.close()
            self._set_deadline(FLUSH_S)

    def abort(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def begin(
        self, request: HttpRequest, exchange: ReplicaExchange, fields: Fields, idle_s: float
    ) -> OutgoingBody:
        """Start to stream a replica's response that has begun; the caller awaits `ended`."""
        head = exchange.head
        assert head is not None
        assert self._transport is not None
        self._has_begun = True
        framing = responses.framing(head, is_modern=request.is_modern)
        request.keeps_alive &= framing is not Framing.CONNECTION
        start = responses.passed(head, fields, framing, closes=not self._keeps_alive(request))
        is_chunked = framing is Framing.CHUNKS
        outgoing = OutgoingBody(self._transport, exchange, is_chunked=is_chunked, idle_s=idle_s)
        self._outgoing = outgoing
        self._transport.write(start)
        exchange.pass_to(outgoing)
        if self._is_full:
            # The client's side is full already, and `pass_to` has resumed the replica.
            outgoing.pause()
        if framing is Framing.UPGRADE:
            self._switch()
        return outgoing

    # -- asyncio.Protocol ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first request."""
        # uvloop's transports do not inherit from asyncio.Transport.
        self._transport = cast(asyncio.Transport, transport)
        if self._owner.is_closing:
            self.abort()  # the TLS handshake ended after the server had stopped listening
            return
        self._owner.connections.add(self)
        if (of := transport.get_extra_info("socket")) is not None:
            # A client whose host has vanished would occupy a replica's stream forever.
            of.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if transport.get_extra_info("sslcontext") is not None:
            self._tls_socket = of
        self._set_deadline(self._limits.head_timeout_s)

    def connection_lost(self, reason: BaseException | None) -> None:
        """Cancel the current request and all timers."""
        self._owner.connections.discard(self)
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        self._reader.close()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        """Pause the replica: the client does not read fast enough."""
        self._is_full = True
        if self._outgoing is not None:
            self._outgoing.pause()

    def resume_writing(self) -> None:
        """Resume the replica, or wait for the next request."""
        self._is_full = False
        if self._outgoing is not None:
            self._outgoing.resume()
        elif self._task is None:
            self._await_request()

    def data_received(self, data: bytes) -> None:
        """Parse the bytes, or pass them on after an upgrade."""
        reader = self._reader
        if reader.fault or self._is_ending:
            return
        if reader.upgraded is not None:
            self._pass_upgraded(data)
            return
        reader.feed(data)
        self._next()

    # -- requests and responses ------------------------------------------------------------

    @property
    def _is_ending(self) -> bool:
        """Whether no more requests are read."""
        return self._lingers or self._transport is None or self._transport.is_closing()

    @property
    def _is_arriving(self) -> bool:
        return self._reader.is_in_head and not self._is_ending

    @property
    def _is_unsent(self) -> bool:
        """Whether written bytes have not yet been sent."""
        transport = self._transport
        return transport is not None and responses.has_unsent(transport, self._tls_socket)

    def _pass_upgraded(self, data: bytes) -> None:
        """Pass bytes that follow an upgrade to the replica, or keep them until there is one."""
        transport, reader = self._transport, self._reader
        assert transport is not None
        assert reader.upgraded is not None
        if self._is_switched and self._outgoing is not None:
            if not self._outgoing.send_to_replica(data, transport.resume_reading):
                transport.pause_reading()
            return
        reader.upgraded += data
        self._throttle_client()

    def _switch(self) -> None:
        """Switch to another protocol: from now on bytes pass in both directions."""
        assert self._transport is not None
        kept, self._reader.upgraded = self._reader.upgraded or b"", b""
        self._is_switched = True
        if not self._transport.is_reading():
            self._transport.resume_reading()
        if kept:
            self._pass_upgraded(kept)

    def _next(self) -> None:
        """Answer the next request, or wait for it to arrive."""
        reader = self._reader
        # A client that does not read gets no further responses to buffer.
        if self._task is None and not self._is_full:
            if reader.requests:
                self._deadline_s = _FAR
                self._has_begun = False
                self._task = self._loop.create_task(self._answer(reader.take()))
            elif reader.fault:
                self._refuse_bytes()
            elif reader.is_in_head:
                head_s = self._limits.head_timeout_s
                if self._deadline_s > self._loop.time() + head_s:
                    self._set_deadline(head_s)
        self._throttle_client()

    def _throttle_client(self) -> None:
        """Read from the client only while there is room.

        While reading is paused, a disconnect is not noticed either.
        """
        transport = self._transport
        assert transport is not None
        if self._reader.is_full:
            transport.pause_reading()
        elif not transport.is_reading():
            transport.resume_reading()

    async def _answer(self, request: HttpRequest) -> None:
        try:
            found = await self._owner.handler(self, request)
            if found is not None:
                self._write(request, found)
        except asyncio.CancelledError:
            self._task = None
            self.abort()
            raise
        except CutOff:
            self._break_off(request)
        except Exception as error:
            self._fail(request, error)
        self._outgoing = None
        self._task = None
        self._after(request)

    def _after(self, request: HttpRequest) -> None:
        """Wait for the next request, or close the connection."""
        self._flushed_by_s = self._loop.time() + FLUSH_S
        if self._is_ending:
            return
        if not self._keeps_alive(request):
            if request.is_whole:
                self.close()
            else:
                self._linger()
        elif self._is_full:
            self._set_deadline(FLUSH_S)
        else:
            self._await_request()

    def _await_request(self) -> None:
        """Wait for the next request; the client has read the last response."""
        if self._is_ending:
            return
        self._set_deadline(self._limits.keep_alive_s)
        self._next()

    def _keeps_alive(self, request: HttpRequest) -> bool:
        return request.keeps_alive and request.is_whole and not self._owner.is_closing

    def _write(self, request: HttpRequest, found: HttpResponse) -> None:
        if self._transport is None:
            return
        closes = not self._keeps_alive(request)
        head = responses.head(found, closes=closes)
        shows = responses.has_body(request.method, found.status)
        self._transport.write(head + found.body if shows else head)

    def _linger(self) -> None:
        """Half-close the connection and drop what the client still sends.

        Closing it with unread bytes would send a reset, which may overtake the response.
        """
        assert self._transport is not None
        self._lingers = True
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._set_deadline(LINGER_S)

    def _refuse_bytes(self) -> None:
        """Answer bytes that are not valid HTTP."""
        assert self._transport is not None
        refusal = invalid(f"the request is not valid HTTP: {self._reader.fault}")
        made = responses.of_refusal(refusal)
        self._transport.write(responses.head(made, closes=True) + made.body)
        self._flushed_by_s = self._loop.time() + FLUSH_S
        self._linger()

    def _break_off(self, request: HttpRequest) -> None:
        """End a response that cannot be completed, so that the client does not take it for whole.

        A client of HTTP/1.0 takes the end of the connection for the end of the response, so its
        connection is reset.
        """
        transport = self._transport
        if transport is None:
            return
        if request.is_modern:
            self.close()
            return
        responses.reset(transport)

    def _fail(self, request: HttpRequest, error: Exception) -> None:
        _log.error("internal error of the router", exc_info=error)
        if self._has_begun:
            self._break_off(request)
            return
        kind = "internal_error"
        request.keeps_alive = False
        self._write(
            request,
            responses.of_refusal(
                Refusal(500, "internal error of the router", kind=kind, code=kind)
            ),
        )

    def _send_continue(self) -> None:
        if self._transport is not None:
            self._transport.write(_CONTINUE)

    # -- deadlines -------------------------------------------------------------------------

    def _set_deadline(self, seconds: float) -> None:
        """Close the connection in `seconds` unless the deadline is moved.

        The timer is moved only if it would fire too late.
        """
        self._deadline_s = self._loop.time() + seconds
        if self._deadline_s < self._timer_s:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_s = self._deadline_s
            self._timer = self._loop.call_at(self._timer_s, self._check_deadline)

    def _check_deadline(self) -> None:
        self._timer, self._timer_s = None, _FAR
        if self._deadline_s == _FAR:
            return
        now_s = self._loop.time()
        left_s = self._deadline_s - now_s
        if left_s <= 0 and self._is_unsent:
            # A response is being sent: the client is slow, not idle.
            left_s = min(self._flushed_by_s - now_s, self._limits.keep_alive_s)
        if left_s > 0:
            self._set_deadline(left_s)
        else:
            self.abort()


Handler = Callable[[ClientConnection, HttpRequest], Awaitable[HttpResponse | None]]


class ClientConnections:
    """Creates and closes the connections of a server."""

    def __init__(self, handler: Handler, limits: ConnectionLimits) -> None:
        self.handler = handler
        self.connections: set[ClientConnection] = set()
        self.is_closing = False
        self._limits = limits

    def __call__(self) -> ClientConnection:
        """Create a connection; a protocol factory for asyncio."""
        return ClientConnection(self, self._limits)

    def busy(self) -> int:
        """Return the number of connections with a request or an unsent response."""
        return sum(connection.busy for connection in self.connections)

    def close_idle(self) -> None:
        """Close the connections without a request; the others close after their response."""
        self.is_closing = True
        for connection in tuple(self.connections):
            connection.close_if_idle()

    async def shutdown(self) -> None:
        """Close all connections at once."""
        self.is_closing = True
        while self.connections:
            for connection in tuple(self.connections):
                connection.abort()
            await asyncio.sleep(0)
