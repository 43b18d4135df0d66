"""A client's request: its head, and its body while it arrives.

Invariant: a body is held within its bound, however it is cut into chunks; who reads it gets the
whole of it or a Refusal.
"""

import asyncio
from collections.abc import Callable
from typing import Final
from urllib.parse import unquote

from kvtier.router.request.fields import Fields, text
from kvtier.router.request.refusals import Refusal, invalid, too_large, too_slow

_CONTINUE: Final = "100-continue"
_SCHEMES: Final = ("http://", "https://")


class Request:
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
        return text(self.fields, name)

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
