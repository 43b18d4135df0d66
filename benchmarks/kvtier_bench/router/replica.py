"""Stub replicas that use almost no CPU, so that the router before them is what is measured.

They run in a process of their own: `python -m kvtier_bench.router.replica COUNT [--chunked]`
listens on that many free ports of loopback, prints them in one line, and serves until its standard
input ends. Of HTTP they support what is needed: requests with a content-length, one after another
on a connection; with `--chunked` also chunked bodies, which Envoy sends in full-duplex mode.
"""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar, cast

from kvtier_bench.router import answers

_IDLE_CHUNKS: Final = 1
_LENGTH: Final = b"content-length:"
_METRICS: Final = b"""\
vllm:num_requests_waiting{model_name="m"} 0
vllm:num_requests_running{model_name="m"} 4
vllm:kv_cache_usage_perc{model_name="m"} 0.25
vllm:cache_config_info{block_size="16",num_gpu_blocks="40000"} 1
"""
_MODELS: Final = b'{"object":"list","data":[{"id":"m","object":"model","owned_by":"vllm"}]}'
_INFO: Final = b'{"model_path":"m","model_id":"m"}'
_GETS: Final = {
    b"/health": b"",
    b"/metrics": _METRICS,
    b"/v1/models": _MODELS,
    b"/get_server_info": _INFO,
}
_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
_Result = TypeVar("_Result")
_CHUNKED: Final = b"transfer-encoding: chunked\r\n"


def run_in_loop(main: Coroutine[Any, Any, _Result]) -> _Result:
    """Run `main` as `asyncio.run` does, in a uvloop if that is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


class StubReplica(asyncio.Protocol):
    """One connection to a stub replica."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport, to write answers to it."""
        # uvloop's transports do not inherit from asyncio.Transport.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, reason: Exception | None) -> None:
        """Stop the stream that is being sent."""
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Answer a request once all of it has arrived."""
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end]
        have = len(self._buffer) - end - 4
        wanted = content_length(head)
        if have < wanted:
            return
        body = self._buffer[end + 4 : end + 4 + wanted]
        self._buffer = self._buffer[end + 4 + wanted :]
        self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        verb, path, _ = head.split(b" ", 2)
        if verb == b"GET":
            self._send(_GETS.get(path), kind=b"text/plain" if path == b"/metrics" else None)
        elif path != b"/v1/completions":
            self._send(None)
        elif b'"stream":true' not in body:
            self._send(answers.whole_answer(answers.find_mark(body)))
        else:
            last = _IDLE_CHUNKS if b'"metadata":"idle"' in body else answers.CHUNKS + 1
            self._stream(answers.find_mark(body), last)

    def _send(self, body: bytes | None, kind: bytes | None = None) -> None:
        status = b"404 Not Found" if body is None else b"200 OK"
        body = body or b""
        self._transport.write(
            b"HTTP/1.1 %s\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n%s"
            % (status, kind or b"application/json", len(body), body)
        )

    def _stream(self, found: bytes, last: int) -> None:
        self._transport.write(_STREAM_HEAD)
        due_s = self._loop.time() + answers.FIRST_S
        self._timer = self._loop.call_at(due_s, self._chunk, found, 0, last, due_s)

    def _chunk(self, found: bytes, number: int, last: int, due_s: float) -> None:
        event = answers.stream_event(found, number)
        framed = b"%x\r\n%s\r\n" % (len(event), event)
        if number == answers.CHUNKS:
            self._transport.write(framed + b"0\r\n\r\n")
            return
        self._transport.write(framed)
        if number + 1 < last:
            # Due times follow from the first chunk's, so that delays do not add up.
            due_s += answers.BETWEEN_S
            self._timer = self._loop.call_at(due_s, self._chunk, found, number + 1, last, due_s)


def content_length(head: bytes) -> int:
    """Return the content-length in the head of a request or an answer; 0 without one."""
    start = head.lower().find(_LENGTH)
    if start < 0:
        return 0
    return int(head[start + len(_LENGTH) :].split(b"\r\n", 1)[0])


class ChunkedStubReplica(StubReplica):
    """One connection to a stub replica that also accepts chunked request bodies."""

    def __init__(self) -> None:
        super().__init__()
        self._raw = b""

    def data_received(self, data: bytes) -> None:
        """Pass each complete request on, a chunked body joined and with its content-length."""
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
    """Return a chunked body and its encoded length; None while it is incomplete.

    Trailers are not supported.
    """
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


async def serve(count: int, connection: Callable[[], StubReplica]) -> None:
    """Listen on `count` ports, print them, and serve until standard input ends."""
    loop = asyncio.get_running_loop()
    servers = [
        await loop.create_server(connection, "127.0.0.1", 0, backlog=4096) for _ in range(count)
    ]
    print(*(server.sockets[0].getsockname()[1] for server in servers), flush=True)
    await loop.run_in_executor(None, sys.stdin.buffer.read)
    for server in servers:
        server.close()


if __name__ == "__main__":
    run_in_loop(
        serve(int(sys.argv[1]), ChunkedStubReplica if "--chunked" in sys.argv else StubReplica)
    )
