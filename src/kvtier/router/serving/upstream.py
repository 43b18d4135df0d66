"""Connections to replicas, kept open between requests.

Why aiohttp's client: it is the fastest of the well-kept ones in Python. Redirects, cookies,
decompression and its own time-outs are off: bytes pass as they are, and the data path keeps time.
"""

import asyncio
import ssl
from typing import Final

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from kvtier.router.base import Endpoint
from kvtier.router.fleet import Listener, Member
from kvtier.router.replicas import Replica

KEEP_ALIVE_S: Final = 4.0
"""Less than the 5 s after which an engine's server closes a connection that nobody uses."""
_NAMES_S: Final = 10
"""How long a resolved name is believed."""


class Upstream:
    """One replica's connections. Create and close it on the event loop."""

    def __init__(
        self, replica: Replica, connect_timeout_s: float, tls: ssl.SSLContext | None
    ) -> None:
        self._origin = replica.url
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,
                keepalive_timeout=KEEP_ALIVE_S,
                ttl_dns_cache=_NAMES_S,
                ssl=tls if tls is not None else True,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            timeout=aiohttp.ClientTimeout(
                total=None, connect=None, sock_connect=connect_timeout_s, sock_read=None
            ),
            trust_env=False,
        )

    async def send(
        self, method: str, target: str, headers: CIMultiDict[str], body: bytes | None
    ) -> aiohttp.ClientResponse:
        """The head of the replica's answer; the caller reads or closes it.

        `target` is the path and query as the client wrote them. Raises aiohttp.ClientError.
        """
        return await self._session.request(
            method,
            URL(self._origin + target, encoded=True),
            headers=headers,
            data=body,
            allow_redirects=False,
        )

    async def close(self) -> None:
        """Close what is kept open. Requests under way fail."""
        await self._session.close()


class Upstreams(Listener):
    """Those of each member, from its joining until it has left. Belongs to the event loop."""

    def __init__(self, connect_timeout_s: float, tls: ssl.SSLContext | None = None) -> None:
        """`tls`: how https replicas are checked; None: as the system does."""
        self._connect_timeout_s = connect_timeout_s
        self._tls = tls
        self._of: dict[Endpoint, Upstream] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def __call__(self, endpoint: Endpoint) -> Upstream:
        """Raises KeyError for who is no member."""
        return self._of[endpoint]

    def joined(self, member: Member) -> None:
        """See Listener."""
        self._of[member.endpoint] = Upstream(member.replica, self._connect_timeout_s, self._tls)

    def left(self, member: Member) -> None:
        """See Listener."""
        task = asyncio.create_task(self._of.pop(member.endpoint).close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close all."""
        await asyncio.gather(*self._closing, *(upstream.close() for upstream in self._of.values()))
