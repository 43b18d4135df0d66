"""The replica, for proxies that pass bodies on in chunks, as Envoy does in full duplex.

A process of its own, like `replica`: `python -m kvtier_bench.router.framed COUNT`.
"""

import asyncio
import sys
from typing import Final

from kvtier_bench.router.replica import Replica

_CHUNKED: Final = b"transfer-encoding: chunked\r\n"


class FramedReplica(Replica):
    """One connection; what comes in chunks is handed on with its length."""

    def __init__(self) -> None:
        super().__init__()
        self._raw = b""

    def data_received(self, data: bytes) -> None:
        """Whole requests only."""
        self._raw += data
        while self._raw:
            end = self._raw.find(b"\r\n\r\n") + 4
            if end < 4:
                return
            head = self._raw[:end]
            if _CHUNKED not in head.lower():
                whole, self._raw = self._raw, b""
                super().data_received(whole)
                return
            found = unchunked(self._raw[end:])
            if found is None:
                return
            body, taken = found
            self._raw = self._raw[end + taken :]
            kept = [
                line for line in head.split(b"\r\n") if not line.lower().startswith(b"transfer")
            ]
            length = b"content-length: %d" % len(body)
            super().data_received(b"\r\n".join((kept[0], length, *kept[1:])) + body)


def unchunked(raw: bytes) -> tuple[bytes, int] | None:
    """The body and the bytes that it took; None while it is not whole. Trailers are not known."""
    pieces: list[bytes] = []
    at = 0
    while (end := raw.find(b"\r\n", at)) >= 0:
        size = int(raw[at:end].partition(b";")[0], 16)
        start = end + 2
        at = start + size + 2
        if len(raw) < at:
            return None
        if not size:
            return b"".join(pieces), at
        pieces.append(raw[start : start + size])
    return None


async def serve(count: int) -> None:
    """Listen, print the ports, and serve until standard input ends."""
    loop = asyncio.get_running_loop()
    servers = [
        await loop.create_server(FramedReplica, "127.0.0.1", 0, backlog=4096) for _ in range(count)
    ]
    print(*(server.sockets[0].getsockname()[1] for server in servers), flush=True)
    await loop.run_in_executor(None, sys.stdin.buffer.read)
    for server in servers:
        server.close()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
