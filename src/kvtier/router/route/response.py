"""The responses to clients: the router's own, and those streamed from a replica.

Invariants: a client of HTTP/1.1 can always tell where a response ends; a client of HTTP/1.0 by its
length or by the end of the connection. Bytes of a body are passed on unchanged. A slow client slows
down the replica. A response that cannot be completed is cut off, never ended as if it were whole.
"""

import asyncio
import email.utils
import enum
import http
import select
import socket
import struct
from collections.abc import Callable
from typing import Final

import msgspec

from kvtier.clock import wall_s
from kvtier.router.replica.connection import unsent_bytes
from kvtier.router.replica.exchange import (
    BODILESS,
    SWITCHING,
    BrokenOff,
    Head,
    ReplicaExchange,
    ResponseSink,
)
from kvtier.router.request.message import Fields, encode_fields
from kvtier.router.request.refusals import JSON, Refusal

_REASONS: Final = {status.value: status.phrase.encode() for status in http.HTTPStatus}
UPGRADE: Final = b"connection: upgrade\r\nupgrade: websocket\r\n"
"""The lines of a head that ask for, or accept, a WebSocket."""
_END: Final = b"0\r\n\r\n"
_RESET: Final = struct.pack("ii", 1, 0)
"""The value of SO_LINGER with which closing sends a reset instead of a normal end."""


class Framing(enum.Enum):
    """How the end of a body is marked."""

    LENGTH = "length"
    CHUNKS = "chunks"
    CONNECTION = "connection"
    """By the end of the connection."""
    NOTHING = "nothing"
    """There is no body."""
    UPGRADE = "upgrade"
    """There is no body; a WebSocket follows."""


class HttpResponse(msgspec.Struct):
    """A complete response to a client."""

    status: int
    body: bytes = b""
    fields: Fields = []
    reason: bytes = b""


def of_kind(body: bytes, kind: str = JSON, status: int = 200) -> HttpResponse:
    """Return a response of the router itself; `kind` is its content type."""
    fields = [(b"content-type", kind.encode()), (b"date", _date())]
    return HttpResponse(status, body, fields)


def of_refusal(refusal: Refusal) -> HttpResponse:
    """Return the response for a refusal."""
    made = of_kind(refusal.body(), status=refusal.status)
    made.fields += [
        (name.lower().encode(), value.encode("latin-1", "replace"))
        for name, value in refusal.headers.items()
    ]
    return made


def has_body(method: str, status: int) -> bool:
    """Return True if the response to a request with `method` may have a body."""
    return method != "HEAD" and status not in BODILESS


def line(status: int, reason: bytes) -> bytes:
    """Return the status line. The version is always 1.1, the version of the router."""
    return b"HTTP/1.1 %d %b\r\n" % (status, reason or _REASONS.get(status, b""))


def head(response: HttpResponse, *, closes: bool) -> bytes:
    """Return the head of a complete response, which is the same for GET and HEAD."""
    ending = b"connection: close\r\n\r\n" if closes else b"\r\n"
    length = b"" if response.status in BODILESS else b"content-length: %d\r\n" % len(response.body)
    return b"".join(
        (line(response.status, response.reason), encode_fields(response.fields), length, ending)
    )


def framing(answer: Head, *, is_modern: bool) -> Framing:
    """Return how to mark the end of a replica's response; only a modern client knows chunks."""
    if answer.status == SWITCHING:
        return Framing.UPGRADE
    if not answer.has_body:
        return Framing.NOTHING
    if answer.length is not None:
        return Framing.LENGTH
    return Framing.CHUNKS if is_modern else Framing.CONNECTION


def passed(answer: Head, fields: Fields, framed: Framing, *, closes: bool) -> bytes:
    """Return the head of a replica's response, with the headers meant for the client."""
    lines = b""
    match framed:
        case Framing.UPGRADE:
            lines, closes = UPGRADE, False
        case Framing.CHUNKS:
            lines = b"transfer-encoding: chunked\r\n"
        case Framing.LENGTH | Framing.NOTHING if not _is_bare(answer):
            lines = b"content-length: %d\r\n" % (answer.length or 0)
    ending = b"connection: close\r\n\r\n" if closes else b"\r\n"
    return b"".join((line(answer.status, answer.reason), encode_fields(fields), lines, ending))


def _is_bare(answer: Head) -> bool:
    """Return True if the response has no `content-length`, as those to HEAD may have."""
    return answer.length is None or answer.status in BODILESS


def _date() -> bytes:
    return email.utils.formatdate(wall_s(), usegmt=True).encode()


def has_unsent(transport: asyncio.WriteTransport, tls_socket: socket.socket | None) -> bool:
    """Return True if written bytes have not been sent yet; `tls_socket` of a TLS connection."""
    if transport.get_write_buffer_size():
        return True
    # Over TLS the write buffer does not include encrypted bytes. Those are unsent only if the
    # socket accepts no more.
    if tls_socket is None:
        return False
    poll = select.poll()
    poll.register(tls_socket, select.POLLOUT)
    return not poll.poll(0)


def reset(transport: asyncio.Transport) -> None:
    """Close a connection with a TCP reset, which no client takes for the end of a response."""
    if (of := transport.get_extra_info("socket")) is not None:
        of.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()


class CutOff(ConnectionError):
    """A response has begun and cannot be completed: close the connection without ending it."""


class OutgoingBody(ResponseSink):
    """The body of a response that is streamed from a replica to a client."""

    def __init__(
        self,
        transport: asyncio.WriteTransport,
        exchange: ReplicaExchange,
        *,
        is_chunked: bool,
        idle_s: float,
    ) -> None:
        """`idle_s` limits the time in which no byte passes; 0 means no limit."""
        self._transport = transport
        self._exchange = exchange
        self._is_chunked = is_chunked
        self._idle_s = idle_s
        self._loop = asyncio.get_running_loop()
        self._moved_s = self._loop.time()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._timer = self._loop.call_later(idle_s, self._check_deadline) if idle_s else None
        self._unsent_bytes = 0
        self._on_room: Callable[[], None] | None = None

    async def ended(self) -> None:
        """Wait until everything was written to the client. Raises CutOff if that is impossible."""
        try:
            await self._ended
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def pause(self) -> None:
        """Pause the replica: the client's buffer is full."""
        self._unsent_bytes = unsent_bytes(self._transport)
        self._exchange.pause()

    def resume(self) -> None:
        """Resume the replica."""
        self._moved_s = self._loop.time()
        self._exchange.resume()

    def send_to_replica(self, data: bytes, on_room: Callable[[], None]) -> bool:
        """Send the client's bytes to the replica after an upgrade.

        Returns False if the replica's buffer is full; `on_room` is called when it has room again.
        """
        self._moved_s = self._loop.time()
        self._on_room = on_room
        return self._exchange.write(data)

    def on_room(self) -> None:
        """Let the client send again, after an upgrade."""
        if self._on_room is not None:
            self._on_room()

    def take(self, piece: bytes) -> None:
        """Write a piece of the body to the client."""
        self._moved_s = self._loop.time()
        self._write(b"%x\r\n%b\r\n" % (len(piece), piece) if self._is_chunked else piece)

    def finish(self, piece: bytes) -> None:
        """Write the last piece of the body and its end."""
        if self._is_chunked:
            last = b"%x\r\n%b\r\n%b" % (len(piece), piece, _END) if piece else _END
            self._write(last)
        elif piece:
            self._write(piece)
        if not self._ended.done():
            self._ended.set_result(None)

    def fail(self, error: BrokenOff) -> None:
        """Cut the response off."""
        self._break_off(f"the answer broke off: {error}")

    def _write(self, data: bytes) -> None:
        # The loop reports a disconnect one iteration after the socket has noticed it.
        if not self._transport.is_closing():
            self._transport.write(data)

    def _break_off(self, why: str) -> None:
        if not self._ended.done():
            self._ended.set_exception(CutOff(why))

    def _check_deadline(self) -> None:
        """Check whether a byte has passed; to move a timer with each piece would cost too much."""
        before, self._unsent_bytes = self._unsent_bytes, unsent_bytes(self._transport)
        if self._unsent_bytes < before:
            self._moved_s = self._loop.time()
        idle_s = self._loop.time() - self._moved_s
        if idle_s < self._idle_s:
            self._timer = self._loop.call_later(self._idle_s - idle_s, self._check_deadline)
        else:
            self._break_off(f"nothing moved for {self._idle_s:g} s")
