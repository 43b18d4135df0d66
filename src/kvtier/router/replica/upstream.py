"""Pools of keep-alive connections to replicas.

Invariants: a connection that the replica may be about to close is not reused; the connection used
last is reused first, so that those opened for a burst become idle and are closed; after `close` no
connection is left.
"""

import asyncio
import ssl
from typing import Final
from urllib.parse import urlsplit

from kvtier.router.choose.base import Endpoint
from kvtier.router.fleet.members import FleetListener, FleetMember
from kvtier.router.fleet.replicas import Replica
from kvtier.router.replica.connection import Body, ExpectedResponse, ReplicaConnection
from kvtier.router.replica.exchange import ReplicaExchange

KEEP_ALIVE_S: Final = 4.0
"""How long an idle connection is kept: less than the 5 s after which an engine closes it."""


class Unreachable(ConnectionError):
    """No connection could be established, so the replica has not seen the request."""


class Upstream:
    """A pool of connections to one replica. Belongs to the event loop."""

    def __init__(
        self, replica: Replica, connect_timeout_s: float, tls: ssl.SSLContext | None
    ) -> None:
        """`tls` verifies an https replica; None uses the system's certificates."""
        url = urlsplit(replica.url)
        assert url.hostname is not None
        assert url.port is not None
        self._host, self._port = url.hostname, url.port
        self._host_line = b"host: %b\r\n" % replica.address.encode()
        self._tls = (tls or ssl.create_default_context()) if url.scheme == "https" else None
        self._connect_timeout_s = connect_timeout_s
        self._idle: list[ReplicaConnection] = []
        self._open: set[ReplicaConnection] = set()
        self._reaper: asyncio.TimerHandle | None = None
        self._is_closed = False

    async def send(self, method: str, target: str, fields: bytes, body: Body) -> ReplicaExchange:
        """Send a request and return its exchange, which the caller must close.

        `target` is the path and query as the client wrote them; `fields` are header lines without
        `host` and `content-length`. Raises Unreachable, also if connecting times out.
        """
        connection = self._take() or await self._connect()
        length = b"" if body is None else b"content-length: %d\r\n" % len(body)
        message = self._message(method, target, fields + length)
        expected = ExpectedResponse.NOTHING if method == "HEAD" else ExpectedResponse.BODY
        return connection.send(message, body, expected)

    async def upgrade(self, target: str, fields: bytes) -> ReplicaExchange:
        """Request an upgrade to the protocol that `fields` name, on a new connection.

        The response's status is SWITCHING if the replica agrees. Raises Unreachable.
        """
        connection = await self._connect()
        return connection.send(self._message("GET", target, fields), None, ExpectedResponse.UPGRADE)

    def _message(self, method: str, target: str, fields: bytes) -> bytes:
        return b"%b %b HTTP/1.1\r\n%b%b\r\n" % (
            method.encode("latin-1"),
            target.encode("latin-1"),
            self._host_line,
            fields,
        )

    async def close(self) -> None:
        """Close all connections; requests in flight fail."""
        self._is_closed = True
        if self._reaper is not None:
            self._reaper.cancel()
        for connection in tuple(self._open):
            connection.break_off()
        while self._open:
            await asyncio.sleep(0)

    def _take(self) -> ReplicaConnection | None:
        """Return the connection used last, if it is recent enough; the others are older still."""
        oldest_s = asyncio.get_running_loop().time() - KEEP_ALIVE_S
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable and connection.idle_since_s > oldest_s:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> ReplicaConnection:
        if self._is_closed:
            raise Unreachable("the replica was removed")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(
                    lambda: ReplicaConnection(self._give_back, self._forget),
                    self._host,
                    self._port,
                    ssl=self._tls,
                )
        except TimeoutError:
            raise Unreachable(f"no connection within {self._connect_timeout_s:g} s") from None
        except (OSError, ssl.SSLError) as error:
            raise Unreachable(error.strerror or str(error)) from error
        if not connection.is_usable:
            raise Unreachable("the connection was closed at once")
        self._open.add(connection)
        if self._is_closed:
            connection.abort()
            raise Unreachable("the replica was removed")
        return connection

    def _give_back(self, connection: ReplicaConnection) -> None:
        loop = asyncio.get_running_loop()
        connection.idle_since_s = loop.time()
        self._idle.append(connection)
        if self._reaper is None:
            self._reaper = loop.call_later(KEEP_ALIVE_S, self._reap)

    def _reap(self) -> None:
        """Close the connections that have been idle for too long."""
        self._reaper = None
        loop = asyncio.get_running_loop()
        oldest_s = loop.time() - KEEP_ALIVE_S
        kept = [one for one in self._idle if one.idle_since_s > oldest_s]
        for connection in self._idle[: len(self._idle) - len(kept)]:
            connection.abort()
        self._idle = kept
        if kept:
            self._reaper = loop.call_at(kept[0].idle_since_s + KEEP_ALIVE_S, self._reap)

    def _forget(self, connection: ReplicaConnection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)


class Upstreams(FleetListener):
    """The connection pools of all members, draining ones included. Belongs to the event loop."""

    def __init__(self, connect_timeout_s: float, tls: ssl.SSLContext | None = None) -> None:
        """`tls` verifies https replicas; None uses the system's certificates."""
        self._connect_timeout_s = connect_timeout_s
        self._tls = tls
        self._of: dict[Endpoint, Upstream] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def __call__(self, endpoint: Endpoint) -> Upstream:
        """Return the pool of `endpoint`. Raises KeyError if it is not a member."""
        return self._of[endpoint]

    def added(self, member: FleetMember) -> None:
        """Create the member's pool; it connects on the first request."""
        self._of[member.endpoint] = Upstream(member.replica, self._connect_timeout_s, self._tls)

    def removed(self, member: FleetMember) -> None:
        """Close the member's pool in the background."""
        task = asyncio.create_task(self._of.pop(member.endpoint).close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close all pools, including those of removed members."""
        await asyncio.gather(*self._closing, *(upstream.close() for upstream in self._of.values()))
