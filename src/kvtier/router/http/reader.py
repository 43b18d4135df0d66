"""Bytes of a client's connection become requests, whichever way they are cut.

Why llhttp (httptools), strict: it is what Node and uvicorn stand on, and what one parser takes and
the next reads otherwise is how requests are smuggled. Invariants: nothing here raises for what a
client sends; heads, bodies and what lies between them are bounded in bytes; after a fault nothing
more is read.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Final

import httptools

from kvtier.router.http.request import Request
from kvtier.router.serving.fields import Fields

FIELD_BYTES: Final = 16 * 1024
"""The longest request line, and the longest header."""
FIELDS: Final = 128
QUIET_BYTES: Final = 64 * 1024
"""What may come in a row that is no body: a head, trailers, chunk sizes with remarks."""
REQUESTS: Final = 1000
"""That may wait for an answer; a kilobyte of memory each, and twenty bytes to send."""
_WEBSOCKET: Final = "websocket"


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
        self._incoming: Request | None = None
        self._target = b""
        self._fields: Fields = []
        self._quiet_bytes = 0

    @property
    def is_amid(self) -> bool:
        """Whether a head has begun and is not whole."""
        return self._quiet_bytes > 0

    def feed(self, data: bytes) -> None:
        """The next bytes. Ends what cannot be read: see `fault`."""
        self._quiet_bytes += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            self.fault = self.fault or str(error) or "it cannot be parsed"
        if self._quiet_bytes > QUIET_BYTES:
            self.fault = self.fault or "a head or trailers without end"
        if self.fault:
            # Its head was right: it hears what is wrong with its body.
            self._break_off(self.fault)

    def close(self) -> None:
        """The client has gone."""
        self._parser = None  # it refers to this reader
        self._break_off("it breaks off")

    def _parse(self, data: bytes | memoryview) -> None:
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = memoryview(data)[upgrade.args[0] :]
                if self.beyond is not None:
                    self.beyond = bytes(data)
                    return
                # There is nothing to upgrade to: the request is answered as it is.

    def _break_off(self, why: str) -> None:
        if self._incoming is not None:
            self._incoming.end(why)
            self._incoming = None

    # -- httptools -------------------------------------------------------------------------

    def on_url(self, part: bytes) -> None:
        """See httptools; it may come in parts."""
        self._target += part
        if len(self._target) > FIELD_BYTES:
            self.fault = "the request line is too long"

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools; trailers come here too."""
        if self._incoming is not None:
            return
        self._fields.append((name.lower(), value))
        if len(name) + len(value) > FIELD_BYTES:
            self.fault = "a header is too long"
        elif len(self._fields) > FIELDS:
            self.fault = f"there are more than {FIELDS} headers"

    def on_headers_complete(self) -> None:
        """See httptools."""
        if len(self.requests) >= REQUESTS:
            self.fault = f"more than {REQUESTS} requests at once"
        if not self._target or self.fault:
            self.fault = self.fault or "it has no target"
            return
        parser = self._parser
        method = parser.get_method().decode("latin-1")
        request = Request(method, self._target, self._fields, self._max_body_bytes, self._welcome)
        request.is_modern = parser.get_http_version() == "1.1"
        request.keeps_alive = request.is_modern and parser.should_keep_alive()
        if parser.should_upgrade() and request.text(b"upgrade").lower() == _WEBSOCKET:
            request.asks_upgrade = True
            request.keeps_alive = False
            self.beyond = b""
        self._target, self._fields = b"", []
        self._quiet_bytes = 0
        self._incoming = request
        self.requests.append(request)

    def on_body(self, piece: bytes) -> None:
        """See httptools."""
        if self._incoming is not None:
            self._quiet_bytes = 0
            self._incoming.feed(piece)

    def on_message_complete(self) -> None:
        """See httptools."""
        if self._incoming is not None:
            self._incoming.end()
            self._incoming = None
