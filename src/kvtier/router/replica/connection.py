"""An HTTP/1.1 connection to a replica, which carries one request and response after the other.

It replaces a client library's connection because a streamed response consists of about a thousand
pieces, and a library spends 20 to 40 us on each in queues and wake-ups; here a piece goes from one
socket to the other in one call. The parser is llhttp (httptools), as in Node and uvicorn.

Invariants: a connection is reused only after its request was sent completely, its response was
complete, and both sides keep the connection open; bytes after a response end the connection but
not the response; heads and trailers are bounded.
"""

import asyncio
import enum
import fcntl
import sys
import termios
from collections.abc import Callable
from typing import Any, Final, cast

import httptools

from kvtier.router.replica.exchange import BODILESS, SWITCHING, BrokenOff, Head, ReplicaExchange
from kvtier.router.request.message import Fields

Body = bytes | bytearray | None
"""A request's body. None means that the request has no body, which differs from an empty one."""

QUIET_BYTES: Final = 64 * 1024
"""The most consecutive bytes that are not body: a head, trailers, chunk sizes with extensions."""
_LONG_BYTES: Final = 64 * 1024
"""A longer request body may still be under way when the response is complete. A shorter one fits
into the socket buffers, so the next request does not wait for it."""


class ExpectedResponse(enum.Enum):
    """What follows the head of a response."""

    BODY = "body"
    NOTHING = "nothing"
    """No body: the response to HEAD."""
    UPGRADE = "upgrade"
    """Another protocol, in both directions, until the connection ends; a body if the replica
    refuses the upgrade."""


class ReplicaConnection(asyncio.Protocol):
    """A connection to one replica.

    It calls `idle` when it can carry another request, and `gone` when it has ended.
    """

    def __init__(
        self,
        idle: Callable[["ReplicaConnection"], None],
        gone: Callable[["ReplicaConnection"], None],
    ) -> None:
        self._on_idle = idle
        self._on_gone = gone
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._exchange: ReplicaExchange | None = None
        self._expected = ExpectedResponse.BODY
        self._is_raw = False
        self._is_full = False
        self._is_paused = False
        self._in_body = False
        self._is_done = False
        self._keeps_alive = False
        self._fields: Fields = []
        self._reason = b""
        self._pieces: list[bytes] = []
        self._quiet_bytes = 0
        self._is_long = False
        """Whether the request may still be under way when its response is complete."""
        self.idle_since_s = 0.0

    def send(self, message: bytes, body: Body, expected: ExpectedResponse) -> ReplicaExchange:
        """Write a request on this connection, which must be idle, and return its exchange."""
        transport = self._transport
        assert transport is not None
        assert self._exchange is None
        exchange = self._exchange = ReplicaExchange(self)
        self._expected = expected
        self._quiet_bytes = 0
        self._is_long = body is not None and len(body) > _LONG_BYTES
        self._start_over()
        if body is None:
            transport.write(message)
        else:
            # `writelines` needs one system call and does not copy a large body.
            transport.writelines((message, body))
        return exchange

    def write(self, data: bytes | memoryview) -> bool:
        """Write `data` after an upgrade; return False if the caller should wait for room."""
        if self._transport is not None:
            self._transport.write(data)
        return not self._is_full

    @property
    def is_usable(self) -> bool:
        """Whether the connection can carry another request now."""
        transport = self._transport
        return transport is not None and not transport.is_closing() and self._exchange is None

    def pause(self) -> None:
        """Stop reading from the replica."""
        if not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read from the replica again."""
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        """End the connection at once, without notifying the exchange."""
        self._exchange = None
        self.break_off()

    def break_off(self) -> None:
        """End the connection at once; an exchange in progress fails with BrokenOff."""
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio.Protocol ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Prepare for the first request."""
        # uvloop's transports do not inherit from asyncio.Transport.
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpResponseParser(self)

    def connection_lost(self, reason: BaseException | None) -> None:
        """Complete or fail the exchange in progress."""
        self._transport = None
        self._parser = None  # breaks the reference cycle
        self._on_gone(self)
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        head = exchange.head
        if reason is None and head is not None and self._ends_with_connection(head):
            exchange.complete([])
        else:
            exchange.lost(BrokenOff(str(reason or "the connection ended")))

    def pause_writing(self) -> None:
        """Make `write` return False until there is room."""
        self._is_full = True

    def resume_writing(self) -> None:
        """Tell the exchange that there is room again."""
        self._is_full = False
        if self._exchange is not None:
            self._exchange.has_room()

    def data_received(self, data: bytes) -> None:
        """Parse what arrived and pass it to the exchange."""
        if self._exchange is None:
            self.abort()  # a response without a request
            return
        if self._is_raw:
            self._exchange.deliver([data])
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if not self._is_raw:
                self._fail("the replica switched protocols without being asked to")
                return
            self._pieces.append(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            if not self._is_done:
                self._fail(f"not HTTP: {error}")
                return
            self._keeps_alive = False  # the parser has read past the response and cannot be reused
        self._flush(len(data))

    # -- httptools -------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Reject a second response to the same request."""
        if self._is_done:
            raise BrokenOff("bytes after the response")

    def on_status(self, reason: bytes) -> None:
        """Collect the reason phrase, which may come in parts."""
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header field; ignore trailers, which are reported here too."""
        if not self._in_body:
            self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Pass the head of a final response to the exchange."""
        status = self._parser.get_status_code()
        self._is_raw = status == SWITCHING and self._expected is ExpectedResponse.UPGRADE
        if status < 200 and not self._is_raw:
            return  # an interim response; the final one follows
        assert self._exchange is not None
        self._in_body = True
        # After HEAD, the parser would wait forever for the body that content-length announces, so
        # the connection is not reused.
        self._keeps_alive = (
            self._expected is ExpectedResponse.BODY and self._parser.should_keep_alive()
        )
        self._is_done = self._expected is ExpectedResponse.NOTHING
        has_body = not self._is_done and status not in BODILESS
        length = _length(self._fields)
        self._exchange.head = Head(status, self._reason, self._fields, length, has_body)

    def on_body(self, piece: bytes) -> None:
        """Collect a piece of the body."""
        if self._expected is not ExpectedResponse.NOTHING:
            self._pieces.append(piece)

    def on_message_complete(self) -> None:
        """Note the end of the response, or of an interim one."""
        if self._in_body:
            self._is_done = not self._is_raw
        else:
            self._start_over()

    # -- ours ------------------------------------------------------------------------------

    def _start_over(self) -> None:
        """Prepare for another head."""
        self._in_body = self._is_done = False
        self._fields = []
        self._reason = b""

    def _flush(self, size: int) -> None:
        """Pass the body pieces of one read of `size` bytes to the exchange."""
        exchange = self._exchange
        assert exchange is not None
        pieces, self._pieces = self._pieces, []
        if self._is_done:
            self._finish(exchange, pieces)
        elif pieces or self._is_raw:
            self._quiet_bytes = 0
            exchange.deliver(pieces)
        else:
            self._quiet_bytes += size
            if self._quiet_bytes > QUIET_BYTES:
                self._fail("the head or the trailers are too long")

    def _finish(self, exchange: ReplicaExchange, pieces: list[bytes]) -> None:
        self._exchange = None
        self.resume()
        transport = self._transport
        assert transport is not None
        if self._is_long and unsent_bytes(transport):
            transport.abort()  # the replica responded before it read the whole request
        elif self._keeps_alive:
            self._on_idle(self)
        else:
            transport.close()
        exchange.complete(pieces)

    def _fail(self, why: str) -> None:
        exchange = self._exchange
        self.abort()
        if exchange is not None:
            exchange.lost(BrokenOff(why))

    def _ends_with_connection(self, head: Head) -> bool:
        return head.length is None and not _is_chunked(head.fields)


def unsent_bytes(transport: asyncio.WriteTransport) -> int:
    """Return the bytes written that the peer has not acknowledged; 0 if the connection has ended.

    They include the kernel's send buffer, which holds up to megabytes. With TLS, the transport does
    not report what the transport below it buffers; but as long as that buffers anything, the kernel
    does too, so the result is 0 only if everything has arrived.
    """
    if transport.is_closing():
        return 0
    buffered = transport.get_write_buffer_size()
    if (sock := transport.get_extra_info("socket")) is None:
        return buffered
    queued = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
    return buffered + int.from_bytes(queued, sys.byteorder)


def _length(fields: Fields) -> int | None:
    for name, value in fields:
        if name == b"content-length":
            return int(value)  # the parser has verified that it is a number
    return None


def _is_chunked(fields: Fields) -> bool:
    return any(
        name == b"transfer-encoding" and b"chunked" in value.lower() for name, value in fields
    )
