"""Bytes of a client's connection become requests, whichever way they are cut.

Why llhttp (httptools), strict: it is what Node and uvicorn stand on, and what one parser takes and
the next reads otherwise is how requests are smuggled.

Invariants: nothing here raises for what a client sends; heads, bodies and what lies between them
are bounded in bytes; what waits to be answered is bounded, and what comes behind it is kept unread;
after a fault nothing more is read.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Final

import httptools

from kvtier.router.request.fields import Fields, block
from kvtier.router.route.request import Request

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


class Reader:
    """Of one connection. `requests` grows when a head is whole; its body may still be coming."""

    def __init__(self, max_body_bytes: int, welcome: Callable[[], None]) -> None:
        """`welcome` tells a client that waits for it to send its body."""
        self.requests: deque[Request] = deque()
        self.fault = ""
        """Why what came is no HTTP; empty: it is."""
        self.beyond: bytes | None = None
        """What came after a request to upgrade: none of HTTP's. None: there was no such request."""
        self._max_body_bytes = max_body_bytes
        self._welcome = welcome
        self._parser: Any = httptools.HttpRequestParser(self)
        self._unread: bytes | memoryview = b""
        self._ahead_bytes = 0
        self._incoming: Request | None = None
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

    def take(self) -> Request:
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

    def _decline(self, request: Request) -> None:
        """Go on in HTTP behind a head that offers an upgrade; its client takes a plain answer.

        llhttp reads no body behind such a head. So another one reads on, as if from behind the same
        head without the offer; while a request is incoming, heads are not looked at.
        """
        parser, self._parser = self._parser, httptools.HttpRequestParser(self)
        ending = b"keep-alive" if parser.should_keep_alive() else b"close"
        framing = block([field for field in request.fields if field[0] in _FRAMING])
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
        request = Request(method, self._target, self._fields, self._max_body_bytes, self._welcome)
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


def _asks_websocket(request: Request) -> bool:
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
