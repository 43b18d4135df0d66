"""A connection to a replica: a request out, its answer in, and then the next.

Why our own and not a client library's: an answer passes here in a thousand pieces, and each
cost a library 20 to 40 us in queues and wake-ups; here a piece goes from one socket to the other
in one call. The parser is llhttp (httptools), which Node and uvicorn stand on.

Invariants: a connection is given back only when its request has left, its answer was whole and
both sides keep it open; what a replica says beyond its answer ends the connection, and not the
answer; heads and trailers are bounded.
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
"""Of a request. None: it has none, which is not an empty one."""

QUIET_BYTES: Final = 64 * 1024
"""What may come in a row that is no body: a head, trailers, chunk sizes with remarks."""
_LONG_BYTES: Final = 64 * 1024
"""Of a request's body; a shorter one is in the replica's hands, and costs no next request time."""


class ExpectedResponse(enum.Enum):
    """What follows the head of a good answer."""

    BODY = "body"
    NOTHING = "nothing"
    """It answers HEAD."""
    UPGRADE = "upgrade"
    """Another protocol, both ways, until the connection ends; or a body, where it is refused."""


class ReplicaConnection(asyncio.Protocol):
    """To one replica. `idle` is called when it may be used again, `gone` when it has ended."""

    def __init__(
        self,
        idle: Callable[["ReplicaConnection"], None],
        gone: Callable[["ReplicaConnection"], None],
    ) -> None:
        self._idle = idle
        self._gone = gone
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._exchange: ReplicaExchange | None = None
        self._expected = ExpectedResponse.BODY
        self._is_raw = False
        self._is_full = False
        self._is_paused = False
        self._in_body = False
        self._is_done = False
        self._stays = False
        self._fields: Fields = []
        self._reason = b""
        self._pieces: list[bytes] = []
        self._quiet_bytes = 0
        self._is_long = False
        """Whether the request may still be on its way when it is answered."""
        self.idle_since_s = 0.0

    def send(self, message: bytes, body: Body, expected: ExpectedResponse) -> ReplicaExchange:
        """Write a request; the connection is idle."""
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
            # One system call, and no copy of a large body.
            transport.writelines((message, body))
        return exchange

    def write(self, data: bytes | memoryview) -> bool:
        """More, after an upgrade. False: no more for now."""
        if self._transport is not None:
            self._transport.write(data)
        return not self._is_full

    @property
    def is_usable(self) -> bool:
        """Whether another request may be written."""
        transport = self._transport
        return transport is not None and not transport.is_closing() and self._exchange is None

    def pause(self) -> None:
        """Read nothing."""
        if not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read."""
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        """End at once: nobody wants what is under way."""
        self._exchange = None
        self.break_off()

    def break_off(self) -> None:
        """End at once; who waits for an answer hears of it."""
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio.Protocol ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        # uvloop's transports are no asyncio.Transport by inheritance.
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpResponseParser(self)

    def connection_lost(self, reason: BaseException | None) -> None:
        """See asyncio.Protocol."""
        self._transport = None
        self._parser = None  # it refers to this connection
        self._gone(self)
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        head = exchange.head
        if reason is None and head is not None and self._ends_with_connection(head):
            exchange.complete([])
        else:
            exchange.lost(BrokenOff(str(reason or "the connection ended")))

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._is_full = True

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._is_full = False
        if self._exchange is not None:
            self._exchange.has_room()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._exchange is None:
            self.abort()  # nobody asked
            return
        if self._is_raw:
            self._exchange.deliver([data])
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if not self._is_raw:
                self._fail("another protocol, which nobody asked for")
                return
            self._pieces.append(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            if not self._is_done:
                self._fail(f"no HTTP: {error}")
                return
            self._stays = False  # a parser that has read beyond would spoil the next answer
        self._flush(len(data))

    # -- httptools -------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """See httptools."""
        if self._is_done:
            raise BrokenOff("more than the answer")

    def on_status(self, reason: bytes) -> None:
        """See httptools; it may come in parts."""
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools; trailers come here too."""
        if not self._in_body:
            self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """See httptools."""
        status = self._parser.get_status_code()
        self._is_raw = status == SWITCHING and self._expected is ExpectedResponse.UPGRADE
        if status < 200 and not self._is_raw:
            return  # an interim answer; the real one follows
        assert self._exchange is not None
        self._in_body = True
        # A parser that was promised a body which HEAD has none of waits for it for ever.
        self._stays = self._expected is ExpectedResponse.BODY and self._parser.should_keep_alive()
        self._is_done = self._expected is ExpectedResponse.NOTHING
        has_body = not self._is_done and status not in BODILESS
        length = _length(self._fields)
        self._exchange.head = Head(status, self._reason, self._fields, length, has_body)

    def on_body(self, piece: bytes) -> None:
        """See httptools."""
        if self._expected is not ExpectedResponse.NOTHING:
            self._pieces.append(piece)

    def on_message_complete(self) -> None:
        """See httptools."""
        if self._in_body:
            self._is_done = not self._is_raw
        else:
            self._start_over()

    # -- ours ------------------------------------------------------------------------------

    def _start_over(self) -> None:
        """Another head is due."""
        self._in_body = self._is_done = False
        self._fields = []
        self._reason = b""

    def _flush(self, size: int) -> None:
        """Hand on what one read has brought, in one piece."""
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
                self._fail("a head or trailers without end")

    def _finish(self, exchange: ReplicaExchange, pieces: list[bytes]) -> None:
        self._exchange = None
        self.resume()
        transport = self._transport
        assert transport is not None
        if self._is_long and unsent_bytes(transport):
            transport.abort()  # the replica has answered what it has not read to the end
        elif self._stays:
            self._idle(self)
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
    """Here and in the kernel; 0 where the connection has ended."""
    if transport.is_closing():
        return 0
    held = transport.get_write_buffer_size()
    if (of := transport.get_extra_info("socket")) is None:
        return held
    told = fcntl.ioctl(of.fileno(), termios.TIOCOUTQ, bytes(4))
    return held + int.from_bytes(told, sys.byteorder)


def _length(fields: Fields) -> int | None:
    for name, value in fields:
        if name == b"content-length":
            return int(value)  # the parser has seen to it that it is a number
    return None


def _is_chunked(fields: Fields) -> bool:
    return any(
        name == b"transfer-encoding" and b"chunked" in value.lower() for name, value in fields
    )
