"""A client's request: its head, and its body while it arrives.

Invariant: a body is held within its bound, however it is cut into chunks; who reads it gets the
whole of it or a Refusal.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import unquote

import httptools

from kvtier.router.request.message import Fields, encode_fields, first_value
from kvtier.router.request.refusals import Refusal, invalid, too_large, too_slow

_CONTINUE: Final = "100-continue"
_SCHEMES: Final = ("http://", "https://")


class HttpRequest:
    """Made by the connection when a head is whole; `feed` and `end` are the connection's."""

    __slots__ = (
        *("_body", "_broken", "_fed_bytes", "_limit_bytes", "_waiter", "_welcome"),
        *("asks_upgrade", "fields", "is_modern", "is_whole", "keeps_alive", "method", "target"),
    )

    def __init__(
        self,
        method: str,
        target: bytes,
        fields: Fields,
        limit_bytes: int,
        welcome: Callable[[], None],
    ) -> None:
        """`limit_bytes`: of its body. `welcome` tells a client that waits to go on."""
        self.method = method
        self.target = _origin_form(target.decode("latin-1"))
        self.fields = fields
        self.is_modern = True
        """HTTP/1.1, which knows chunks."""
        self.keeps_alive = True
        self.asks_upgrade = False
        """It wants to go on in WebSocket; what comes after it is none of HTTP's."""
        self.is_whole = False
        self._limit_bytes = limit_bytes
        self._welcome = welcome
        self._body: bytes | bytearray = b""
        self._fed_bytes = 0
        self._broken = ""
        self._waiter: asyncio.Future[None] | None = None

    @property
    def path(self) -> str:
        """Decoded, without the query."""
        path = self.target.partition("?")[0]
        return unquote(path) if "%" in path else path

    def text(self, name: bytes) -> str:
        """The first value of a header, named in lower case; empty where there is none."""
        return first_value(self.fields, name)

    async def body(self, timeout_s: float) -> bytes | bytearray:
        """The whole body. Raises Refusal: 413 over the limit, 408 when it does not arrive."""
        self._look_at_length()
        waits = self._expects_word()
        if not self.is_whole and self._fed_bytes <= self._limit_bytes:
            if waits:
                self._welcome()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._arrival()
            except TimeoutError:
                raise too_slow("body", timeout_s) from None
        if self._fed_bytes > self._limit_bytes:
            raise too_large(self._limit_bytes)
        if self._broken:
            raise invalid(f"the body is not what its headers say: {self._broken}")
        return self._body

    # -- told by the connection ------------------------------------------------------------

    def feed(self, piece: bytes) -> None:
        """The body goes on."""
        self._fed_bytes += len(piece)
        if self._fed_bytes > self._limit_bytes:
            self._body = b""
            self._wake()
        elif not self._body:
            self._body = piece
        else:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += piece

    def end(self, broken: str = "") -> None:
        """It is whole, or cannot become it."""
        self._broken = broken
        self.is_whole = not broken
        self._wake()

    def _look_at_length(self) -> None:
        # The parser lets any number of zeros through, Python makes no number of 5000 digits.
        announced = self.text(b"content-length").lstrip("0")
        if announced.isdecimal() and int(announced) > self._limit_bytes:
            raise too_large(self._limit_bytes)

    def _expects_word(self) -> bool:
        """Whether the client waits for a word before it sends; nothing else may be expected.

        HTTP/1.0 expects nothing, and knows no word before an answer.
        """
        expected = self.text(b"expect") if self.is_modern else ""
        if expected and expected.lower() != _CONTINUE:
            message = f"Expect: {expected[:40]!r} is not understood"
            raise Refusal(417, message, code="expectation_failed")
        return bool(expected)

    async def _arrival(self) -> None:
        while not self.is_whole and not self._broken and self._fed_bytes <= self._limit_bytes:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _origin_form(target: str) -> str:
    """`http://host/v1/x` is `/v1/x` to whoever serves the host."""
    if target.lower().startswith(_SCHEMES):
        path = target.partition("//")[2].partition("/")
        return f"/{path[2]}"
    return target


FIELD_BYTES: Final = 16 * 1024
"""The longest request line, and the longest header."""
FIELDS: Final = 128
QUIET_BYTES: Final = 64 * 1024
"""What may come in a row that is no body: a head, trailers, chunk sizes with remarks."""
WAITING: Final = 16
"""Requests, behind the one that is answered; then nothing more is parsed."""
AHEAD_BYTES: Final = 256 * 1024
"""Of requests that wait, with their bodies; likewise."""
_PIECE_BYTES: Final = 16 * 1024
"""What is parsed at once: it holds 900 requests at most, whatever one read of a socket brings."""
_WEBSOCKET: Final = "websocket"
_FRAMING: Final = (b"content-length", b"transfer-encoding")


class RequestReader:
    """Of one connection. `requests` grows when a head is whole; its body may still be coming."""

    def __init__(self, max_body_bytes: int, welcome: Callable[[], None]) -> None:
        """`welcome` tells a client that waits for it to send its body."""
        self.requests: deque[HttpRequest] = deque()
        self.fault = ""
        """Why what came is no HTTP; empty: it is."""
        self.beyond: bytes | None = None
        """What came after a request to upgrade: none of HTTP's. None: there was no such request."""
        self._max_body_bytes = max_body_bytes
        self._welcome = welcome
        self._parser: Any = httptools.HttpRequestParser(self)
        self._unread: bytes | memoryview = b""
        self._ahead_bytes = 0
        self._incoming: HttpRequest | None = None
        self._is_amid = False
        self._target = b""
        self._fields: Fields = []
        self._quiet_bytes = 0

    @property
    def is_amid(self) -> bool:
        """Whether a head has begun and is not whole."""
        return self._is_amid and not self.fault

    @property
    def is_full(self) -> bool:
        """Whether so much waits that nothing more should come."""
        if self.beyond is not None:
            return len(self.beyond) > QUIET_BYTES
        return bool(self._unread) or self._has_enough

    def feed(self, data: bytes) -> None:
        """The next bytes. Ends what cannot be read: see `fault`."""
        self._unread = bytes(self._unread) + data if self._unread else data
        self._read()

    def take(self) -> HttpRequest:
        """The request that has waited longest; behind the last one, what is unread is read."""
        request = self.requests.popleft()
        if not self.requests:
            self._read()
        return request

    def close(self) -> None:
        """The client has gone."""
        self._parser = None  # it refers to this reader
        self._unread = b""
        self._break_off("it breaks off")

    @property
    def _has_enough(self) -> bool:
        return bool(self.requests) and (
            len(self.requests) >= WAITING or self._ahead_bytes >= AHEAD_BYTES
        )

    def _read(self) -> None:
        """As far as there is room for requests."""
        if not self.requests:
            self._ahead_bytes = 0
        left = memoryview(self._unread)
        while left and self.beyond is None and not self._has_enough and not self.fault:
            self._read_piece(left[:_PIECE_BYTES])
            left = left[_PIECE_BYTES:]
        if self.beyond is not None:
            self.beyond += left
        is_later = bool(left) and self.beyond is None and not self.fault
        self._unread = left if is_later else b""  # an empty view would hold all that was read

    def _read_piece(self, piece: memoryview) -> None:
        self._ahead_bytes += len(piece)
        self._quiet_bytes += len(piece)
        try:
            self._parse(piece)
        except httptools.HttpParserError as error:
            self._refuse(str(error) or "it cannot be parsed")
        if self._quiet_bytes > QUIET_BYTES:
            self._refuse("a head or trailers without end")
        if self.fault:
            # Its head was right: it hears what is wrong with its body.
            self._break_off(self.fault)

    def _parse(self, data: memoryview) -> None:
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                if self.beyond is not None:
                    self.beyond = bytes(data)
                    return
                if self._incoming is None:
                    return
                self._decline(self._incoming)

    def _decline(self, request: HttpRequest) -> None:
        """Go on in HTTP behind a head that offers an upgrade; its client takes a plain answer.

        llhttp reads no body behind such a head. So another one reads on, as if from behind the same
        head without the offer; while a request is incoming, heads are not looked at.
        """
        parser, self._parser = self._parser, httptools.HttpRequestParser(self)
        ending = b"keep-alive" if parser.should_keep_alive() else b"close"
        framing = encode_fields([field for field in request.fields if field[0] in _FRAMING])
        version = parser.get_http_version().encode()
        self._parser.feed_data(
            b"POST / HTTP/%b\r\nconnection: %b\r\n%b\r\n" % (version, ending, framing)
        )

    def _refuse(self, why: str) -> None:
        """What is wrong first is what is said."""
        self.fault = self.fault or why

    def _break_off(self, why: str) -> None:
        if self._incoming is not None:
            self._incoming.end(why)
            self._incoming = None

    # -- httptools -------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """See httptools."""
        self._is_amid = self._incoming is None

    def on_url(self, part: bytes) -> None:
        """See httptools; it may come in parts."""
        if self._incoming is not None:
            return
        self._target += part
        if len(self._target) > FIELD_BYTES:
            self._refuse("the request line is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools; trailers come here too."""
        if self._incoming is not None:
            return
        self._fields.append((name.lower(), value.strip(b" \t")))
        if len(name) + len(value) > FIELD_BYTES:
            self._refuse("a header is too long")
        elif len(self._fields) > FIELDS:
            self._refuse(f"there are more than {FIELDS} headers")

    def on_headers_complete(self) -> None:
        """See httptools."""
        if self._incoming is not None:
            return
        parser = self._parser
        method = parser.get_method().decode("latin-1")
        if method == "CONNECT":
            self._refuse("CONNECT is for proxies")
        if not self._target:
            self._refuse("it has no target")
        if self.fault:
            return
        request = HttpRequest(
            method, self._target, self._fields, self._max_body_bytes, self._welcome
        )
        request.is_modern = parser.get_http_version() == "1.1"
        request.keeps_alive = request.is_modern and parser.should_keep_alive()
        if parser.should_upgrade() and _asks_websocket(request):
            request.asks_upgrade = True
            request.keeps_alive = False
            self.beyond = b""
        self._target, self._fields = b"", []
        self._quiet_bytes = 0
        self._is_amid = False
        self._incoming = request
        self.requests.append(request)

    def on_body(self, piece: bytes) -> None:
        """See httptools."""
        if self._incoming is not None:
            self._quiet_bytes = 0
            self._incoming.feed(piece)

    def on_message_complete(self) -> None:
        """See httptools."""
        if self.beyond is None and self._parser.should_upgrade():
            return  # of the head; its body is still to be read: see _decline
        self._quiet_bytes = 0
        if self._incoming is not None:
            self._incoming.end()
            self._incoming = None


def _asks_websocket(request: HttpRequest) -> bool:
    """Whether what follows may be another protocol: not behind a body, nor in HTTP/1.0."""
    return (
        request.method == "GET"
        and request.is_modern
        and request.text(b"upgrade").lower() == _WEBSOCKET
        and not any(
            name == b"transfer-encoding" or value.strip(b"0")
            for name, value in request.fields
            if name in _FRAMING
        )
    )
