"""An answer's beginning as bytes: the router's own answers, and those that it passes on.

Invariant: what a client of HTTP/1.0 gets ends with its connection or after its length; all others
see an end of its own in every answer.
"""

import asyncio
import email.utils
import enum
import http
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
"""Lines of a head."""


class Framing(enum.Enum):
    """How the end of a body is told."""

    LENGTH = "length"
    CHUNKS = "chunks"
    CONNECTION = "connection"
    """By the end of the connection."""
    NOTHING = "nothing"
    """There is none: the answer ends with its head."""
    UPGRADE = "upgrade"
    """It is no body: both sides go on in WebSocket."""


class HttpResponse(msgspec.Struct):
    """A whole answer."""

    status: int
    body: bytes = b""
    fields: Fields = []
    reason: bytes = b""


def of_kind(body: bytes, kind: str = JSON, status: int = 200) -> HttpResponse:
    """The router's own."""
    fields = [(b"content-type", kind.encode()), (b"date", _date())]
    return HttpResponse(status, body, fields)


def of_refusal(refusal: Refusal) -> HttpResponse:
    """As the client sees it."""
    made = of_kind(refusal.body(), status=refusal.status)
    made.fields += [
        (name.lower().encode(), value.encode("latin-1", "replace"))
        for name, value in refusal.headers.items()
    ]
    return made


def has_body(method: str, status: int) -> bool:
    """Whether the answer to such a request may have one."""
    return method != "HEAD" and status not in BODILESS


def line(status: int, reason: bytes) -> bytes:
    """The first line. Always of version 1.1: it says what the router speaks."""
    return b"HTTP/1.1 %d %b\r\n" % (status, reason or _REASONS.get(status, b""))


def head(response: HttpResponse, *, closes: bool) -> bytes:
    """Of an answer whose body follows, or would if the request were no HEAD."""
    ending = b"connection: close\r\n\r\n" if closes else b"\r\n"
    length = b"" if response.status in BODILESS else b"content-length: %d\r\n" % len(response.body)
    return b"".join(
        (line(response.status, response.reason), encode_fields(response.fields), length, ending)
    )


def framing(answer: Head, *, is_modern: bool) -> Framing:
    """Of a replica's answer on its way to a client, who may know no chunks."""
    if answer.status == SWITCHING:
        return Framing.UPGRADE
    if not answer.has_body:
        return Framing.NOTHING
    if answer.length is not None:
        return Framing.LENGTH
    return Framing.CHUNKS if is_modern else Framing.CONNECTION


def passed(answer: Head, fields: Fields, framed: Framing, *, closes: bool) -> bytes:
    """The head of a replica's answer, with the fields that the client gets to see."""
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
    """Whether it says nothing of a length, not even of what HEAD leaves out."""
    return answer.length is None or answer.status in BODILESS


def _date() -> bytes:
    return email.utils.formatdate(wall_s(), usegmt=True).encode()


_END: Final = b"0\r\n\r\n"


class CutOff(ConnectionError):
    """The answer has begun and cannot be finished: close the connection without its end."""


class Outgoing(ResponseSink):
    """One answer's body. `ended` says how it went."""

    def __init__(
        self,
        transport: asyncio.WriteTransport,
        exchange: ReplicaExchange,
        *,
        is_chunked: bool,
        idle_s: float,
    ) -> None:
        """`idle_s`: without a byte passing; 0 for no limit."""
        self._transport = transport
        self._exchange = exchange
        self._is_chunked = is_chunked
        self._idle_s = idle_s
        self._loop = asyncio.get_running_loop()
        self._moved_s = self._loop.time()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._timer = self._loop.call_later(idle_s, self._look) if idle_s else None
        self._unsent_bytes = 0
        self._on_room: Callable[[], None] | None = None

    async def ended(self) -> None:
        """Until the client has been sent everything. Raises CutOff where that cannot be."""
        try:
            await self._ended
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def hold(self) -> None:
        """The client takes nothing."""
        self._unsent_bytes = unsent_bytes(self._transport)
        self._exchange.pause()

    def go_on(self) -> None:
        """It does again."""
        self._moved_s = self._loop.time()
        self._exchange.resume()

    def send_back(self, data: bytes, on_room: Callable[[], None]) -> bool:
        """From the client to the replica, after an upgrade. False: wait for `on_room`."""
        self._moved_s = self._loop.time()
        self._on_room = on_room
        return self._exchange.write(data)

    def on_room(self) -> None:
        """See ResponseSink."""
        if self._on_room is not None:
            self._on_room()

    def take(self, piece: bytes) -> None:
        """See ResponseSink."""
        self._moved_s = self._loop.time()
        self._write(b"%x\r\n%b\r\n" % (len(piece), piece) if self._is_chunked else piece)

    def finish(self, piece: bytes) -> None:
        """See ResponseSink."""
        if self._is_chunked:
            last = b"%x\r\n%b\r\n%b" % (len(piece), piece, _END) if piece else _END
            self._write(last)
        elif piece:
            self._write(piece)
        if not self._ended.done():
            self._ended.set_result(None)

    def fail(self, error: BrokenOff) -> None:
        """See ResponseSink."""
        self._break_off(f"the answer broke off: {error}")

    def _write(self, data: bytes) -> None:
        # That the client has left is told one turn of the loop later than the socket knows it.
        if not self._transport.is_closing():
            self._transport.write(data)

    def _break_off(self, why: str) -> None:
        if not self._ended.done():
            self._ended.set_exception(CutOff(why))

    def _look(self) -> None:
        """Moving a timer with every piece would cost more than writing the piece."""
        before, self._unsent_bytes = self._unsent_bytes, unsent_bytes(self._transport)
        if self._unsent_bytes < before:
            self._moved_s = self._loop.time()
        idle_s = self._loop.time() - self._moved_s
        if idle_s < self._idle_s:
            self._timer = self._loop.call_later(self._idle_s - idle_s, self._look)
        else:
            self._break_off(f"nothing moved for {self._idle_s:g} s")
