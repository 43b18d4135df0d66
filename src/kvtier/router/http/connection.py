"""A client's connection: aiohttp's, with a bound on how long a request's head may take.

Why: aiohttp gives a connection as long as it likes to send its headers, so that a few slow
clients could hold all descriptors; and it answers what is no HTTP in plain text and with a
traceback in the log. Invariant: whatever bytes arrive, the answer is an OpenAI-style error or
a closed connection.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from kvtier.router.serving.refusals import JSON, Refusal, invalid

_log = logging.getLogger(__name__)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

FIELD_BYTES: Final = 16 * 1024
"""The longest request line, and the longest header."""
LINGER_S: Final = 5.0
"""How long what is left of a refused body is read and dropped, so that the refusal is seen."""


class CutOff(ConnectionError):
    """The answer has begun and cannot be finished: close the connection without its end."""

    def __init__(self, message: str, *, by_client: bool = False) -> None:
        """`by_client`: it is the client that has gone."""
        super().__init__(message)
        self.by_client = by_client


class Connection(RequestHandler):
    """One of them. The data path calls `begin` and `end` around each request."""

    __slots__ = ("_busy", "_head_timeout_s", "_timer")

    def __init__(self, front: "Front", head_timeout_s: float, **settings: Any) -> None:
        super().__init__(front, **settings)
        self._head_timeout_s = head_timeout_s
        self._timer: asyncio.TimerHandle | None = None
        self._busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Its first request is due."""
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """The first bytes of a later request: the rest of its head is due."""
        super().data_received(data)
        if not self._busy and self._timer is None:
            self._expect_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Nothing is due any more."""
        self._stop_timer()
        super().connection_lost(exc)

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self._busy

    def begin(self) -> None:
        """A whole head has arrived."""
        self._busy = True
        self._stop_timer()

    def end(self) -> None:
        """The request has been answered."""
        self._busy = False

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What aiohttp found wrong with the bytes, or what the data path could not answer."""
        self._stop_timer()
        if isinstance(exc, CutOff):
            raise exc
        if request.writer.output_size > 0:
            raise CutOff("the answer had begun")
        if status == 400:
            refusal = invalid(f"the request is not HTTP as it should be: {_first_line(message)}")
        else:
            _log.error("a request ended in an error of the router", exc_info=exc)
            refusal = Refusal(
                status, "the router failed", kind="internal_error", code="internal_error"
            )
        answer = answer_refusal(refusal)
        answer.force_close()
        return answer

    def _expect_head(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._head_timeout_s, self._give_up)

    def _give_up(self) -> None:
        self._timer = None
        if not self._busy:
            self.force_close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Front(web.Server):
    """Makes connections. A client that goes away cancels its handler."""

    def __init__(self, handler: Handler, head_timeout_s: float, keep_alive_s: float) -> None:
        super().__init__(handler, handler_cancellation=True)
        self._head_timeout_s = head_timeout_s
        self._keep_alive_s = keep_alive_s

    def busy(self) -> int:
        """Connections on which a request is being answered."""
        return sum(
            connection.busy for connection in self.connections if isinstance(connection, Connection)
        )

    def __call__(self) -> RequestHandler:
        """For a new connection."""
        return Connection(
            self,
            self._head_timeout_s,
            loop=self._loop,
            keepalive_timeout=self._keep_alive_s,
            access_log=None,
            auto_decompress=False,
            max_line_size=FIELD_BYTES,
            max_field_size=FIELD_BYTES,
            lingering_time=LINGER_S,
        )


def answer_refusal(refusal: Refusal) -> web.Response:
    """As the client sees it."""
    return web.Response(
        status=refusal.status,
        body=refusal.body(),
        content_type=JSON,
        headers=refusal.headers,
    )


def _first_line(message: str | None) -> str:
    """Without the bytes that a client sent, which aiohttp quotes below it."""
    return (message or "it cannot be parsed").strip().partition("\n")[0].rstrip(": ")
