"""Parses the requests of a client.

The parser is llhttp (httptools) in strict mode, which Node and uvicorn use as well: two parsers
that read the same bytes differently are how requests are smuggled.

Invariants: nothing that a client sends raises an exception in the parser; heads, bodies and what
lies between them are bounded in bytes; the number of waiting requests is bounded, and what follows
them is kept unparsed; nothing is parsed after an error. Reading a body returns all of it or raises
a Refusal.
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
FIELD_BYTES: Final = 16 * 1024
"""The longest request line, and the longest header."""
FIELDS: Final = 128
"""The largest number of headers."""
QUIET_BYTES: Final = 64 * 1024
"""The most consecutive bytes outside a body: a head, trailers, chunk sizes and extensions."""
WAITING: Final = 16
"""The most requests that wait behind the current one; nothing is parsed beyond them."""
AHEAD_BYTES: Final = 256 * 1024
"""The most bytes of waiting requests and their bodies; nothing is parsed beyond them."""
_PIECE_BYTES: Final = 16 * 1024
"""The most bytes that are parsed at once, which limits a burst to 900 requests."""
_WEBSOCKET: Final = "websocket"
_FRAMING: Final = (b"content-length", b"transfer-encoding")


class HttpRequest:
    """A client's request: its head, and its body, which may still be arriving.

    RequestReader creates it when the head is complete, and calls `feed` and `end`.
    """

    __slots__ = (
        *("_body", "_broken", "_fed_bytes", "_limit_bytes", "_waiter", "_send_continue"),
        *("asks_upgrade", "fields", "is_modern", "is_whole", "keeps_alive", "method", "target"),
    )

    def __init__(
        self,
        method: str,
        target: bytes,
        fields: Fields,
        limit_bytes: int,
        send_continue: Callable[[], None],
    ) -> None:
        """`limit_bytes` limits the body. `send_continue` asks a waiting client for the body."""
        self.method = method
        self.target = _origin_form(target.decode("latin-1"))
        self.fields = fields
        self.is_modern = True
        """Whether it is of HTTP/1.1, which has chunks."""
        self.keeps_alive = True
        self.asks_upgrade = False
        """Whether it asks for a WebSocket; the bytes that follow are then not HTTP."""
        self.is_whole = False
        self._limit_bytes = limit_bytes
        self._send_continue = send_continue
        self._body: bytes | bytearray = b""
        self._fed_bytes = 0
        self._broken = ""
        self._waiter: asyncio.Future[None] | None = None

    @property
    def path(self) -> str:
        """The decoded path, without the query."""
        path = self.target.partition("?")[0]
        return unquote(path) if "%" in path else path

    def text(self, name: bytes) -> str:
        """Return the first value of a header (named in lower case), or an empty text."""
        return first_value(self.fields, name)

    async def body(self, timeout_s: float) -> bytes | bytearray:
        """Wait for the body and return it. Raises Refusal: 413 if too large, 408 if too late."""
        self._look_at_length()
        waits = self._expects_word()
        if not self.is_whole and self._fed_bytes <= self._limit_bytes:
            if waits:
                self._send_continue()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._arrival()
            except TimeoutError:
                raise too_slow("body", timeout_s) from None
        if self._fed_bytes > self._limit_bytes:
            raise too_large(self._limit_bytes)
        if self._broken:
            raise invalid(f"the body does not match its headers: {self._broken}")
        return self._body

    # -- called by RequestReader -----------------------------------------------------------

    def feed(self, piece: bytes) -> None:
        """Append to the body."""
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
        """End the body; `broken` is the reason if it is incomplete."""
        self._broken = broken
        self.is_whole = not broken
        self._wake()

    def _look_at_length(self) -> None:
        # The parser accepts any number of leading zeros; Python refuses to parse 5000 digits.
        announced = self.text(b"content-length").lstrip("0")
        if announced.isdecimal() and int(announced) > self._limit_bytes:
            raise too_large(self._limit_bytes)

    def _expects_word(self) -> bool:
        """Return True if the client waits for `100 Continue`; HTTP/1.0 has no such header.

        Raises Refusal for other expectations.
        """
        expected = self.text(b"expect") if self.is_modern else ""
        if expected and expected.lower() != _CONTINUE:
            message = f"Expect: {expected[:40]!r} is not supported"
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
    """Return the path and query of a target in absolute form: `/v1/x` of `http://host/v1/x`."""
    if target.lower().startswith(_SCHEMES):
        path = target.partition("//")[2].partition("/")
        return f"/{path[2]}"
    return target


class RequestReader:
    """The parser of one connection.

    A request is appended to `requests` when its head is complete; its body may still be arriving.
    """

    def __init__(self, max_body_bytes: int, send_continue: Callable[[], None]) -> None:
        """`send_continue` asks a client that waits for `100 Continue` to send the body."""
        self.requests: deque[HttpRequest] = deque()
        self.fault = ""
        """The reason why the bytes are not valid HTTP; empty if they are."""
        self.upgraded: bytes | None = None
        """The bytes after a request to upgrade, which are not HTTP; None without such a request."""
        self._max_body_bytes = max_body_bytes
        self._send_continue = send_continue
        self._parser: Any = httptools.HttpRequestParser(self)
        self._unread: bytes | memoryview = b""
        self._ahead_bytes = 0
        self._incoming: HttpRequest | None = None
        self._is_in_head = False
        self._target = b""
        self._fields: Fields = []
        self._quiet_bytes = 0

    @property
    def is_in_head(self) -> bool:
        """Whether a head has begun and is incomplete."""
        return self._is_in_head and not self.fault

    @property
    def is_full(self) -> bool:
        """Whether so much is waiting that the connection should not read more."""
        if self.upgraded is not None:
            return len(self.upgraded) > QUIET_BYTES
        return bool(self._unread) or self._has_enough

    def feed(self, data: bytes) -> None:
        """Parse the next bytes. If they are invalid, set `fault` and end the current request."""
        self._unread = bytes(self._unread) + data if self._unread else data
        self._read()

    def take(self) -> HttpRequest:
        """Remove and return the first waiting request; after the last one, parse what was kept."""
        request = self.requests.popleft()
        if not self.requests:
            self._read()
        return request

    def close(self) -> None:
        """End the current request: the client has disconnected."""
        self._parser = None  # breaks a reference cycle
        self._unread = b""
        self._break_off("the client disconnected")

    @property
    def _has_enough(self) -> bool:
        return bool(self.requests) and (
            len(self.requests) >= WAITING or self._ahead_bytes >= AHEAD_BYTES
        )

    def _read(self) -> None:
        """Parse as much as there is room for."""
        if not self.requests:
            self._ahead_bytes = 0
        left = memoryview(self._unread)
        while left and self.upgraded is None and not self._has_enough and not self.fault:
            self._read_piece(left[:_PIECE_BYTES])
            left = left[_PIECE_BYTES:]
        if self.upgraded is not None:
            self.upgraded += left
        is_later = bool(left) and self.upgraded is None and not self.fault
        self._unread = left if is_later else b""  # an empty view would keep the buffer alive

    def _read_piece(self, piece: memoryview) -> None:
        self._ahead_bytes += len(piece)
        self._quiet_bytes += len(piece)
        try:
            self._parse(piece)
        except httptools.HttpParserError as error:
            self._refuse(str(error) or "it cannot be parsed")
        if self._quiet_bytes > QUIET_BYTES:
            self._refuse("the headers or trailers are too long")
        if self.fault:
            # The head of this request was valid: its handler learns that the body is not.
            self._break_off(self.fault)

    def _parse(self, data: memoryview) -> None:
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                if self.upgraded is not None:
                    self.upgraded = bytes(data)
                    return
                if self._incoming is None:
                    return
                self._decline(self._incoming)

    def _decline(self, request: HttpRequest) -> None:
        """Continue in HTTP after a head that offers an upgrade which is declined.

        llhttp parses no body after such a head. A new parser therefore starts with an equivalent
        head without the offer; its callbacks ignore heads while a request is incoming.
        """
        parser, self._parser = self._parser, httptools.HttpRequestParser(self)
        ending = b"keep-alive" if parser.should_keep_alive() else b"close"
        framing = encode_fields([field for field in request.fields if field[0] in _FRAMING])
        version = parser.get_http_version().encode()
        self._parser.feed_data(
            b"POST / HTTP/%b\r\nconnection: %b\r\n%b\r\n" % (version, ending, framing)
        )

    def _refuse(self, why: str) -> None:
        """Set `fault`, unless an earlier one is set."""
        self.fault = self.fault or why

    def _break_off(self, why: str) -> None:
        if self._incoming is not None:
            self._incoming.end(why)
            self._incoming = None

    # -- callbacks of httptools ------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Note that a head has begun."""
        self._is_in_head = self._incoming is None

    def on_url(self, part: bytes) -> None:
        """Append a part of the target."""
        if self._incoming is not None:
            return
        self._target += part
        if len(self._target) > FIELD_BYTES:
            self._refuse("the request line is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Append a header, and ignore trailers."""
        if self._incoming is not None:
            return
        self._fields.append((name.lower(), value.strip(b" \t")))
        if len(name) + len(value) > FIELD_BYTES:
            self._refuse("a header is too long")
        elif len(self._fields) > FIELDS:
            self._refuse(f"there are more than {FIELDS} headers")

    def on_headers_complete(self) -> None:
        """Create the request."""
        if self._incoming is not None:
            return
        parser = self._parser
        method = parser.get_method().decode("latin-1")
        if method == "CONNECT":
            self._refuse("the method CONNECT is not supported")
        if not self._target:
            self._refuse("it has no target")
        if self.fault:
            return
        request = HttpRequest(
            method, self._target, self._fields, self._max_body_bytes, self._send_continue
        )
        request.is_modern = parser.get_http_version() == "1.1"
        request.keeps_alive = request.is_modern and parser.should_keep_alive()
        if parser.should_upgrade() and _asks_websocket(request):
            request.asks_upgrade = True
            request.keeps_alive = False
            self.upgraded = b""
        self._target, self._fields = b"", []
        self._quiet_bytes = 0
        self._is_in_head = False
        self._incoming = request
        self.requests.append(request)

    def on_body(self, piece: bytes) -> None:
        """Append to the body of the current request."""
        if self._incoming is not None:
            self._quiet_bytes = 0
            self._incoming.feed(piece)

    def on_message_complete(self) -> None:
        """End the current request."""
        if self.upgraded is None and self._parser.should_upgrade():
            return  # only the head has ended; `_decline` goes on with the body
        self._quiet_bytes = 0
        if self._incoming is not None:
            self._incoming.end()
            self._incoming = None


def _asks_websocket(request: HttpRequest) -> bool:
    """Return True if a WebSocket may follow: not after a body, and not in HTTP/1.0."""
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
