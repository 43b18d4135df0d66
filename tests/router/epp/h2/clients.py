"""An HTTP/2 client that sends exactly the given frames, for tests below gRPC."""

import asyncio
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import hpack

from kvtier.clock import VirtualClock
from kvtier.router.epp.h2 import frames, grpc
from kvtier.router.epp.h2.calls import Call
from kvtier.router.epp.h2.connection import H2Connection
from kvtier.router.epp.h2.grpc import GrpcStatus
from kvtier.router.epp.h2.limits import H2Limits, MemoryBudget
from kvtier.router.epp.h2.session import ServerContext

BEGIN = frames.PREFACE + frames.settings({}) + frames.frame(frames.SETTINGS, frames.ACK, 0)
HEADERS = {
    ":method": "POST",
    ":scheme": "http",
    ":path": "/echo",
    ":authority": "picker",
    "te": "trailers",
    "content-type": "application/grpc",
}


def block(**changes: str) -> bytes:
    """Return the header block of a call, without dynamic table references."""
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    fields = {**HEADERS, **{f":{name}": value for name, value in changes.items()}}
    written: bytes = encoder.encode(list(fields.items()))
    return written


def tracestate(size: int, *, is_packed: bool) -> bytes:
    """Return a `tracestate` header of `size` bytes, a multiple of four, to append to a block."""
    # Four times the letter b in HPACK's Huffman code.
    content = b"\x8e\x38\xe3" * (size // 4) if is_packed else b"b" * size
    length = hpack.hpack.encode_integer(len(content), 7)
    length[0] |= 0x80 if is_packed else 0
    return b"\x00\x0atracestate" + bytes(length) + content


def opened(stream: int = 1, *, ends: bool = False, **changes: str) -> bytes:
    flags = frames.END_HEADERS | (frames.END_STREAM if ends else 0)
    return frames.frame(frames.HEADERS, flags, stream, block(**changes))


def message(content: bytes) -> bytes:
    return grpc.prefix(len(content)) + content


def data(content: bytes, stream: int = 1, *, ends: bool = False) -> bytes:
    return frames.frame(frames.DATA, frames.END_STREAM if ends else 0, stream, content)


def number(value: int) -> bytes:
    return struct.pack(">I", value)


class Echo:
    """A Handler that echoes every message, ends with the client, and records its calls."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.got: list[bytes] = []
        self.said: list[str] = []

    def receive(self, content: bytes) -> None:
        self.got.append(content)
        self.call.send((content,))

    def half_closed(self) -> None:
        self.said.append("half closed")
        self.call.end()

    def sent(self) -> None:
        self.said.append("sent")

    def closed(self) -> None:
        self.said.append("closed")

    def out_of_memory(self) -> None:
        self.said.append("out_of_memory")

    def stopping(self) -> None:
        self.said.append("stopping")


class Whole(Echo):
    """Answers the first message and ends in one piece; records if that is impossible."""

    def receive(self, content: bytes) -> None:
        self.got.append(content)
        if not self.call.try_finish((content,)):
            self.said.append("cannot")


class Holding(Echo):
    """Holds the call after each message."""

    def receive(self, content: bytes) -> None:
        self.got.append(content)
        self.call.hold()


class Telling(Echo):
    """Records when it has handled a message."""

    def receive(self, content: bytes) -> None:
        super().receive(content)
        self.said.append(content.decode())


class Failing(Echo):
    def receive(self, content: bytes) -> None:
        if content == b"later":
            self.call.send(1 / 0 for _ in range(1))  # type: ignore[misc]
        if content == b"second":
            self.call.send(b"%d" % (1 // left) for left in (1, 0))
        raise ValueError("a bug")


class Refusing(Echo):
    """Refuses a message over the memory budget in its own words."""

    def out_of_memory(self) -> None:
        self.call.send((b"too much",))
        self.call.end()


class Socket(asyncio.Transport):
    """A transport that records what is written, and can pretend to be full."""

    def __init__(self, *, is_secure: bool = False) -> None:
        super().__init__({"sslcontext": True} if is_secure else {})
        self.writes: list[bytes] = []
        self.is_full = False
        self.is_closed = False
        self.is_reading = True

    def write(self, content: Any) -> None:
        self.writes.append(bytes(content))

    def get_write_buffer_size(self) -> int:
        return int(self.is_full)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True

    def close(self) -> None:
        self.is_closed = True

    abort = close


class Client:
    """A connection to test services; create it within a running event loop."""

    def __init__(
        self, limits: H2Limits | None = None, *, is_secure: bool = False, is_late: bool = False
    ) -> None:
        """`is_late`: the server is already stopping."""
        self.handlers: list[Echo] = []
        self.memory = MemoryBudget(1 << 20)
        self.broken = 0
        self.clock = VirtualClock()
        kinds: Mapping[bytes, type[Echo]] = {
            b"/echo": Echo,
            b"/whole": Whole,
            b"/holding": Holding,
            b"/telling": Telling,
            b"/failing": Failing,
            b"/refusing": Refusing,
        }
        services = {path: self._making(kind) for path, kind in kinds.items()}
        self.host = ServerContext(
            services, limits or H2Limits(), self.memory, self.clock, self._break
        )
        self.host.is_stopping = is_late
        self.connections: set[H2Connection] = set()
        self.connection = H2Connection(self.host, self.connections)
        self.socket = Socket(is_secure=is_secure)
        self.connection.connection_made(self.socket)
        self.greeting = self.take()

    def send(self, *parts: bytes) -> list[frames.Frame]:
        """Send bytes and return the frames that they are answered with."""
        self.connection.data_received(b"".join(parts))
        return self.take()

    def take(self) -> list[frames.Frame]:
        """Return the frames that were written since the last call."""
        found = parsed(b"".join(self.socket.writes))
        self.socket.writes.clear()
        return found

    def end(self) -> None:
        self.connection.connection_lost(None)

    def _making(self, kind: type[Echo]) -> Callable[[Call], Echo]:
        def make(call: Call) -> Echo:
            self.handlers.append(kind(call))
            return self.handlers[-1]

        return make

    def _break(self) -> None:
        self.broken += 1


def parsed(content: bytes) -> list[frames.Frame]:
    """Parse a server's frames, all of which must be complete."""
    reader = frames.FrameReader(1 << 24)
    found = list(reader.feed(frames.PREFACE + content))
    assert not reader._left
    return found


def kinds(found: Iterable[frames.Frame]) -> list[int]:
    return [frame[0] for frame in found]


def answered(found: Iterable[frames.Frame], stream: int = 1) -> tuple[list[bytes], int | None]:
    """Return the messages of a stream, and its gRPC status if it has ended."""
    assembler = grpc.Assembler(1 << 30)
    messages: list[bytes] = []
    status = None
    for kind, flags, where, payload in found:
        if where != stream:
            continue
        if kind == frames.DATA:
            messages += assembler.feed(payload)
        elif kind == frames.HEADERS and flags & frames.END_STREAM:
            status = int(fields_of(payload).get("grpc-status", -1))
    return messages, status


def fields_of(payload: bytes) -> dict[str, str]:
    return dict(hpack.Decoder().decode(payload))


def gone(found: Iterable[frames.Frame]) -> int | None:
    """Return the error code of the last GOAWAY, if any."""
    codes = [payload[4:8] for kind, _, _, payload in found if kind == frames.GOAWAY]
    return int.from_bytes(codes[-1], "big") if codes else None


def run(test: Callable[[], Any]) -> None:
    """Run a test, which may return a coroutine, inside an event loop."""

    async def go() -> None:
        made = test()
        if made is not None:
            await made

    asyncio.run(go())


OK = int(GrpcStatus.OK)
