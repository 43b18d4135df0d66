"""A port on which gRPC calls are answered."""

import asyncio
import socket
import ssl
from collections.abc import Callable

from kvtier.clock import Clock, MonotonicClock
from kvtier.errors import InvalidSettings
from kvtier.router.epp.h2.calls import Services
from kvtier.router.epp.h2.connection import H2Connection
from kvtier.router.epp.h2.limits import H2Limits, MemoryBudget
from kvtier.router.epp.h2.session import ServerContext

_BACKLOG = 1024
_POLL_S = 0.02
"""How often `stop` checks whether the connections have ended."""
_LINGER_S = 0.5
"""How long connections that were ended have to send their last frames."""


class GrpcListener:
    """A listening socket and its connections: call `bind`, `start`, then `stop`.

    Belongs to the event loop's thread.
    """

    def __init__(
        self,
        services: Services,
        limits: H2Limits,
        memory: MemoryBudget,
        *,
        on_broken: Callable[[], None] = lambda: None,
        clock: Clock | None = None,
    ) -> None:
        """`memory` may be shared with others.

        `on_broken` is called when a client has violated the protocol and loses its connection.
        """
        clock = clock or MonotonicClock()
        self._context = ServerContext(services, limits, memory, clock, on_broken)
        self._connections: set[H2Connection] = set()
        self._socket: socket.socket | None = None
        self._tls: ssl.SSLContext | None = None
        self._server: asyncio.Server | None = None

    def bind(self, host: str, port: int, tls: ssl.SSLContext | None) -> int:
        """Bind the port (0: any free one) and return it. Raises InvalidSettings if that fails."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            family, address = found[0][0], found[0][4]
            is_both = host == "::" and socket.has_dualstack_ipv6()
            self._socket = socket.create_server(
                address[:2], family=family, backlog=_BACKLOG, dualstack_ipv6=is_both
            )
        except OSError as error:
            shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            raise InvalidSettings(f"{shown} cannot be listened on: {error}") from error
        self._tls = tls
        bound: int = self._socket.getsockname()[1]
        return bound

    async def start(self) -> None:
        """Accept connections."""
        assert self._socket is not None, "call bind() first"
        limits = self._context.limits
        self._server = await asyncio.get_running_loop().create_server(
            lambda: H2Connection(self._context, self._connections),
            sock=self._socket,
            ssl=self._tls,
            backlog=_BACKLOG,
            ssl_handshake_timeout=None if self._tls is None else limits.begin_s,
            ssl_shutdown_timeout=None if self._tls is None else limits.close_s,
        )

    async def stop(self, grace_s: float) -> None:
        """Stop accepting connections, give open streams `grace_s` to end, then close them.

        Idempotent.
        """
        self._context.is_stopping = True
        if self._server is not None:
            self._server.close()
        elif self._socket is not None:
            self._socket.close()
        self._server = self._socket = None
        if grace_s > 0:
            for connection in list(self._connections):
                connection.shut_down()
            await self._wait_until_empty(grace_s)
        for connection in list(self._connections):
            connection.end()
        await self._wait_until_empty(_LINGER_S)
        for connection in list(self._connections):
            connection.abort()

    async def _wait_until_empty(self, within_s: float) -> None:
        """Return when no connection is left, or after `within_s`."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + within_s
        while self._connections and loop.time() < end_s:
            await asyncio.sleep(_POLL_S)
