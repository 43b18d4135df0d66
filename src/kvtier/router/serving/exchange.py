"""One request to a replica and its answer, over a connection that is kept for the next.

Why our own and not a client library's: an answer passes here in a thousand pieces, and each
cost a library 20 to 40 us in queues and wake-ups; here a piece goes from one socket to the other
in one call. The parser is llhttp (httptools), which Node and uvicorn stand on.

Invariants: a connection is given back only when its answer was whole and both sides keep it open;
an answer that breaks off is never taken for a whole one; who takes pieces slowly holds the replica
back. Everything belongs to the event loop's thread.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

import httptools
import msgspec

from kvtier.router.serving.fields import Fields

Body = bytes | bytearray | None
"""Of a request. None: it has none, which is not an empty one."""

QUIET_BYTES: Final = 64 * 1024
"""What may come in a row that is no body: a head, trailers, chunk sizes with remarks."""
_HELD_BYTES: Final = 256 * 1024
"""Of a body that nobody takes yet; then the replica is held back."""


class BrokenOff(ConnectionError):
    """The answer ended before its end, or was none."""


class Head(msgspec.Struct, frozen=True):
    """The beginning of an answer."""

    status: int
    reason: bytes
    fields: Fields
    length: int | None
    """Of the body in bytes; None: it comes in chunks, or until the connection ends."""


class Sink(Protocol):
    """Takes an answer's body, piece by piece. Nothing here may raise or wait."""

    def take(self, piece: bytes) -> None:
        """The next bytes."""
        ...

    def finish(self, piece: bytes) -> None:
        """The last bytes, or none: the answer is whole."""
        ...

    def fail(self, error: BrokenOff) -> None:
        """Nothing more comes, and something is missing."""
        ...


class Exchange:
    """One request's answer. Its reader calls `close` at the end, whatever happened."""

    __slots__ = ("_connection", "_error", "_held", "_sink", "_waiter", "head", "is_whole")

    def __init__(self, connection: "Connection") -> None:
        self._connection: Connection | None = connection
        self._held: list[bytes] = []
        self._sink: Sink | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._error: BrokenOff | None = None
        self.head: Head | None = None
        self.is_whole = False

    async def begin(self) -> Head:
        """Wait for the first bytes of the body, or its end. Raises BrokenOff."""
        while not self._held and not self.is_whole:
            await self._wait()
        assert self.head is not None
        return self.head

    def taken(self) -> bytes:
        """What has come so far of the body; from now on it is the caller's."""
        held, self._held = self._held, []
        return held[0] if len(held) == 1 else b"".join(held)

    async def read(self, limit_bytes: int) -> bytes:
        """The whole body. Raises BrokenOff, and ValueError for more than that."""
        pieces = []
        size = 0
        while True:
            piece = self.taken()
            size += len(piece)
            if size > limit_bytes:
                raise ValueError(f"more than {limit_bytes} bytes")
            pieces.append(piece)
            if self.is_whole:
                return b"".join(pieces)
            self.resume()
            await self._wait()

    def pass_to(self, sink: Sink) -> None:
        """From now on, pieces go there; `taken` comes first. It may be told before this returns."""
        self._sink = sink
        self.resume()
        if self.is_whole:
            sink.finish(self.taken())
        elif self._error is not None:
            sink.fail(self._error)

    def pause(self) -> None:
        """Take nothing from the replica until `resume`."""
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """Go on."""
        if self._connection is not None:
            self._connection.resume()

    def close(self) -> None:
        """The answer is not wanted any more. Idempotent."""
        self._sink = None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    # -- told by the connection ------------------------------------------------------------

    def deliver(self, pieces: list[bytes]) -> None:
        """The body goes on."""
        if self._sink is not None:
            self._sink.take(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            return
        self._held += pieces
        if sum(map(len, self._held)) > _HELD_BYTES:
            self.pause()
        self._wake()

    def complete(self, pieces: list[bytes]) -> None:
        """The answer is whole; the connection is somebody else's now."""
        self._connection = None
        self.is_whole = True
        if self._sink is not None:
            self._sink.finish(b"".join(pieces))
            return
        self._held += pieces
        self._wake()

    def lost(self, error: BrokenOff) -> None:
        """The connection has ended, and the answer has not."""
        self._connection = None
        self._error = error
        if self._sink is not None:
            self._sink.fail(error)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        """Until something comes. Raises BrokenOff."""
        if self._error is not None:
            raise self._error
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter
        if self._error is not None and not self._held:
            raise self._error


class Connection(asyncio.Protocol):
    """To one replica. `idle` is called when it may be used again, `gone` when it has ended."""

    def __init__(
        self, idle: Callable[["Connection"], None], gone: Callable[["Connection"], None]
    ) -> None:
        self._idle = idle
        self._gone = gone
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._exchange: Exchange | None = None
        self._has_body = True
        self._is_paused = False
        self._in_body = False
        self._is_done = False
        self._stays = False
        self._fields: Fields = []
        self._reason = b""
        self._pieces: list[bytes] = []
        self._quiet_bytes = 0
        self.idle_since_s = 0.0

    def send(self, message: bytes, body: Body, *, has_answer_body: bool) -> Exchange:
        """Write a request; the connection is idle."""
        transport = self._transport
        assert transport is not None
        assert self._exchange is None
        exchange = self._exchange = Exchange(self)
        self._has_body = has_answer_body
        self._start_over()
        if body is None:
            transport.write(message)
        else:
            # One system call, and no copy of a large body.
            transport.writelines((message, body))
        return exchange

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

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._exchange is None:
            self.abort()  # nobody asked
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"no HTTP: {error}")
            return
        self._flush(len(data))

    # -- httptools -------------------------------------------------------------------------

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
        if status < 200:
            return  # an interim answer; the real one follows
        if self._is_done:
            raise BrokenOff("an answer that nobody asked for")
        assert self._exchange is not None
        self._in_body = True
        # A parser that was promised a body which HEAD has none of waits for it for ever.
        self._stays = self._has_body and self._parser.should_keep_alive()
        self._exchange.head = Head(status, self._reason, self._fields, _length(self._fields))
        if not self._has_body:
            self._is_done = True

    def on_body(self, piece: bytes) -> None:
        """See httptools."""
        if self._has_body:
            self._pieces.append(piece)

    def on_message_complete(self) -> None:
        """See httptools."""
        if self._in_body:
            self._is_done = True
        else:
            self._start_over()

    # -- ours ------------------------------------------------------------------------------

    def _start_over(self) -> None:
        """Another head is due."""
        self._in_body = self._is_done = False
        self._fields = []
        self._reason = b""
        self._quiet_bytes = 0

    def _flush(self, size: int) -> None:
        """Hand on what one read has brought, in one piece."""
        exchange = self._exchange
        assert exchange is not None
        pieces, self._pieces = self._pieces, []
        if self._is_done:
            self._finish(exchange, pieces)
        elif pieces:
            self._quiet_bytes = 0
            exchange.deliver(pieces)
        else:
            self._quiet_bytes += size
            if self._quiet_bytes > QUIET_BYTES:
                self._fail("a head or trailers without end")

    def _finish(self, exchange: Exchange, pieces: list[bytes]) -> None:
        self._exchange = None
        self.resume()
        if self._stays:
            self._idle(self)
        elif self._transport is not None:
            self._transport.close()
        exchange.complete(pieces)

    def _fail(self, why: str) -> None:
        exchange = self._exchange
        self.abort()
        if exchange is not None:
            exchange.lost(BrokenOff(why))

    def _ends_with_connection(self, head: Head) -> bool:
        return head.length is None and not _is_chunked(head.fields)


def _length(fields: Fields) -> int | None:
    for name, value in fields:
        if name == b"content-length":
            return int(value)  # the parser has seen to it that it is a number
    return None


def _is_chunked(fields: Fields) -> bool:
    return any(
        name == b"transfer-encoding" and b"chunked" in value.lower() for name, value in fields
    )
