"""The server side of one HTTP/2 connection (RFC 9113), without I/O: frames in, frames out.

Invariants: a client that breaks a rule, or floods the server with frames that carry nothing, ends
its connection with one `H2ProtocolError`; data is sent only within the client's windows; every
header block is decoded, even that of a refused call, as long as later blocks may refer to it.
"""

from collections.abc import Callable
from typing import Final, Protocol

from kvtier.clock import Clock
from kvtier.router.epp.h2 import frames, grpc, headers
from kvtier.router.epp.h2.calls import Sender, Services
from kvtier.router.epp.h2.frames import Code, H2ProtocolError
from kvtier.router.epp.h2.limits import Allowance, FrameBudget, H2Limits, PeerSettings, widened
from kvtier.router.epp.h2.stream import Stream

_STREAMS_A_FRAME: Final = 64
"""To look at so many costs about as much as to handle a frame."""
_LEAVING: Final = b"leaving!"
_LIVING: Final = b"living??"


class ServerContext:
    """What all connections of a server share."""

    def __init__(
        self,
        services: Services,
        limits: H2Limits,
        allowance: Allowance,
        clock: Clock,
        on_broken: Callable[[], None],
    ) -> None:
        """`on_broken` is called for connections that end because of what the client did."""
        self.services = services
        self.limits = limits
        self.allowance = allowance
        self.clock = clock
        self.known = headers.HeaderCache()
        self.on_broken = on_broken
        self.is_leaving = False
        """Whether the server takes no more connections."""


class Wire(Protocol):
    """The socket, as far as its session needs it."""

    def write(self, data: bytes | memoryview) -> None:
        """Goes out with the next flush."""
        ...

    def has_room(self) -> bool:
        """Whether the socket takes more now."""
        ...

    def can_unite(self, size: int) -> bool:
        """Whether what is written next, of `size` bytes, will be read as one; it is then."""
        ...

    def finish(self) -> None:
        """Close it once everything has gone out."""
        ...


class Session:
    """Meets stream.StreamCarrier. `take` each frame."""

    def __init__(self, host: ServerContext, wire: Wire) -> None:
        self._host = host
        self._wire = wire
        self.limits = host.limits
        self.allowance = host.allowance
        self.write = wire.write
        self.has_room = wire.has_room
        self.can_unite = wire.can_unite
        self.send_window = frames.DEFAULT_WINDOW_BYTES
        self._receive_window = self.limits.connection_window_bytes
        self._consumed_bytes = 0
        self._peer = PeerSettings()
        self._decoder = headers.HeaderDecoder(host.known)
        self._patience = FrameBudget(self.limits, host.clock)
        self._streams: dict[int, Stream] = {}
        self._waiting: dict[Sender, None] = {}
        self._last_stream = 0
        self._block: headers.HeaderBlock | None = None
        """One that goes on."""
        self.has_begun = False
        """Whether the peer has said what it allows."""
        self._is_leaving = self._has_left = False
        self._on: dict[int, Callable[[int, int, bytes], None]] = {
            frames.DATA: self._on_data,
            frames.HEADERS: self._on_headers,
            frames.PRIORITY: self._on_priority,
            frames.RST_STREAM: self._on_reset,
            frames.SETTINGS: self._on_settings,
            frames.PUSH_PROMISE: self._on_promise,
            frames.PING: self._on_ping,
            frames.GOAWAY: self._on_goaway,
            frames.WINDOW_UPDATE: self._on_window,
            frames.CONTINUATION: self._on_continuation,
        }

    def begin(self) -> None:
        """Say what we allow."""
        limits = self.limits
        self.write(
            frames.settings(
                {
                    frames.HEADER_TABLE_SIZE: 0,
                    frames.MAX_CONCURRENT_STREAMS: limits.max_streams,
                    frames.INITIAL_WINDOW_SIZE: limits.stream_window_bytes,
                    frames.MAX_FRAME_SIZE: limits.max_frame_bytes,
                    frames.MAX_HEADER_LIST_SIZE: headers.LIST_BYTES,
                }
            )
        )
        extra = limits.connection_window_bytes - frames.DEFAULT_WINDOW_BYTES
        self.write(frames.window_update(0, extra))

    # What its streams call.

    @property
    def peer_frame_bytes(self) -> int:
        """The longest payload that the peer takes."""
        return self._peer.frame_bytes

    def wait(self, stream: Sender) -> None:
        """See StreamCarrier."""
        self._waiting[stream] = None

    def consumed(self, size: int) -> None:
        """See StreamCarrier."""
        self._consumed_bytes += size
        if self._consumed_bytes * 2 >= self.limits.connection_window_bytes:
            self._receive_window += self._consumed_bytes
            self.write(frames.window_update(0, self._consumed_bytes))
            self._consumed_bytes = 0

    def forget(self, stream: Sender) -> None:
        """See StreamCarrier."""
        self._streams.pop(stream.number, None)
        self._waiting.pop(stream, None)
        if self._has_left and not self._streams:
            self._wire.finish()

    # What its connection calls.

    def take(self, frame: frames.Frame) -> None:
        """Raises H2ProtocolError."""
        kind, flags, number, payload = frame
        if not self.has_begun:
            if kind != frames.SETTINGS or flags & frames.ACK:
                raise H2ProtocolError(Code.PROTOCOL_ERROR, "the first frame has to be SETTINGS")
            self.has_begun = True
        if self._block is not None and kind != frames.CONTINUATION:
            raise H2ProtocolError(Code.PROTOCOL_ERROR, "a header block that does not go on")
        act = self._on.get(kind)
        if act is None:
            self._spend()  # of a kind that is not known: let be
        else:
            act(flags, number, payload)

    def pump(self) -> None:
        """There may be room again: send what waits for it."""
        for _ in range(len(self._waiting)):
            if self.send_window <= 0 or not self._waiting or not self.has_room():
                return
            stream = next(iter(self._waiting))
            del self._waiting[stream]
            stream.pump()

    def check(self) -> None:
        """Called now and then: streams that nobody reads do not stay."""
        for stream in list(self._streams.values()):
            stream.check()

    def ask(self) -> None:
        """Whether the peer is there: it has to answer."""
        self.write(frames.frame(frames.PING, 0, 0, _LIVING))

    def leave(self) -> None:
        """Ask the peer to go elsewhere; what it begins until it has heard is still answered."""
        if self._is_leaving:
            return
        self._is_leaving = True
        for stream in list(self._streams.values()):
            stream.stop()
        self.write(frames.goaway(frames.MOST_STREAM, Code.NO_ERROR))
        self.write(frames.frame(frames.PING, 0, 0, _LEAVING))

    def end(self, code: Code, message: str) -> None:
        """Every stream ends, and the peer hears why."""
        self.lose()
        self.write(frames.goaway(self._last_stream, code, message))

    def cut(self, message: str) -> None:
        """Every stream ends, and is told so."""
        for stream in list(self._streams.values()):
            stream.cut(grpc.GrpcStatus.UNAVAILABLE, message)
        self.write(frames.goaway(self._last_stream, Code.NO_ERROR, message))

    def lose(self) -> None:
        """Every stream ends; nobody hears of it."""
        for stream in list(self._streams.values()):
            stream.lose()

    # Frames.

    def _on_data(self, flags: int, number: int, payload: bytes) -> None:
        size = len(payload)
        self._receive_window -= size
        if self._receive_window < 0:
            raise H2ProtocolError(Code.FLOW_CONTROL_ERROR, "more than the connection's window")
        self._require_begun(number)
        ends = flags & frames.END_STREAM
        if not size and not ends:
            self._spend()
        stream = self._streams.get(number)
        data = frames.content(flags & frames.PADDED, payload) if flags & frames.PADDED else payload
        if stream is None:
            self.consumed(size)  # on its way when the stream ended
        elif stream.is_half_closed:
            raise H2ProtocolError(Code.STREAM_CLOSED, "DATA after the end of its stream")
        else:
            stream.feed(data, size)
            if ends and not stream.is_over:
                stream.half_close()

    def _on_headers(self, flags: int, number: int, payload: bytes) -> None:
        if not number & 1:
            raise H2ProtocolError(Code.PROTOCOL_ERROR, "a stream of a client has an odd number")
        part = frames.content(flags & (frames.PADDED | frames.HAS_PRIORITY), payload)
        if flags & frames.END_HEADERS:
            self._on_block(flags, number, part)
        else:
            self._block = headers.HeaderBlock(number, flags, part)

    def _on_continuation(self, flags: int, number: int, payload: bytes) -> None:
        block = self._block
        if block is None or block.stream != number:
            raise H2ProtocolError(Code.PROTOCOL_ERROR, "CONTINUATION of nothing")
        if not payload:
            self._spend()
        block.add(payload)
        if flags & frames.END_HEADERS:
            self._block = None
            self._on_block(block.flags, number, block.content)

    def _on_block(self, flags: int, number: int, block: bytes) -> None:
        call: headers.CallHeaders | None
        try:
            call = self._decoder.read(block)
        except headers.TooLong:
            call = None
        ends = bool(flags & frames.END_STREAM)
        if number <= self._last_stream:
            self._on_client_trailers(number, ends=ends)
            return
        if self._has_left:
            return  # begun before our word had arrived: the client knows that it has to ask again
        self._last_stream = number
        if len(self._streams) >= self.limits.max_streams:
            self._spend()
            self.write(frames.reset(number, Code.REFUSED_STREAM))
        elif call is not None and not (call.method and call.path):
            self._spend()
            self.write(frames.reset(number, Code.PROTOCOL_ERROR))
        else:
            self._open(number, call, ends=ends)

    def _on_client_trailers(self, number: int, *, ends: bool) -> None:
        stream = self._streams.get(number)
        if stream is None:
            return
        if stream.is_half_closed:
            raise H2ProtocolError(Code.STREAM_CLOSED, "HEADERS after the end of their stream")
        if not ends:
            raise H2ProtocolError(Code.PROTOCOL_ERROR, "HEADERS a second time")
        stream.half_close()

    def _open(self, number: int, call: headers.CallHeaders | None, *, ends: bool) -> None:
        stream = Stream(self, number, self._peer.window_bytes)
        stream.is_half_closed = ends
        self._streams[number] = stream
        if call is None:
            stream.end(grpc.GrpcStatus.RESOURCE_EXHAUSTED, "headers that are too long")
        elif call.method != b"POST":
            stream.refuse(405)
        elif not call.content_type.startswith(b"application/grpc"):
            stream.refuse(415)
        else:
            service = self._host.services.get(call.path)
            if service is None:
                stream.end(grpc.GrpcStatus.UNIMPLEMENTED, "there is no such method")
            else:
                stream.handler = service(stream)
                if self._is_leaving:
                    stream.stop()
                if ends and not stream.is_over:
                    stream.half_close()

    def _on_priority(self, flags: int, number: int, payload: bytes) -> None:
        del flags, number, payload
        self._spend()

    def _on_reset(self, flags: int, number: int, payload: bytes) -> None:
        del flags
        frames.number(payload)
        self._require_begun(number)
        stream = self._streams.get(number)
        if stream is not None:
            if not stream.has_answered:
                self._spend()
            stream.lose()

    def _on_settings(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise H2ProtocolError(Code.PROTOCOL_ERROR, "SETTINGS of a stream")
        if flags & frames.ACK:
            if payload:
                raise H2ProtocolError(Code.FRAME_SIZE_ERROR, "an ACK with settings")
            self._decoder.allow_no_table()
            return
        more_bytes = self._peer.change(payload)
        self._spend(1 + len(self._streams) // _STREAMS_A_FRAME if more_bytes else 1)
        self.write(frames.frame(frames.SETTINGS, frames.ACK, 0))
        if more_bytes:
            for stream in list(self._streams.values()):
                _widen(stream, more_bytes)

    def _on_promise(self, flags: int, number: int, payload: bytes) -> None:
        del flags, number, payload
        raise H2ProtocolError(Code.PROTOCOL_ERROR, "clients promise nothing")

    def _on_ping(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise H2ProtocolError(Code.PROTOCOL_ERROR, "PING of a stream")
        if len(payload) != frames.PING_BYTES:
            raise H2ProtocolError(Code.FRAME_SIZE_ERROR, "PING of another size")
        self._spend()
        if not flags & frames.ACK:
            self.write(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif payload == _LEAVING and self._is_leaving and not self._has_left:
            self._leave_for_good()

    def _on_goaway(self, flags: int, number: int, payload: bytes) -> None:
        del flags, number, payload
        self._spend()  # it begins nothing more, and closes when it has its answers

    def _on_window(self, flags: int, number: int, payload: bytes) -> None:
        del flags
        size = frames.number(payload) & frames.MOST_WINDOW_BYTES
        if not size:
            raise H2ProtocolError(Code.PROTOCOL_ERROR, "a window that grows by nothing")
        if not number:
            self.send_window = widened(self.send_window, size)
            self.pump()
            return
        self._require_begun(number)
        stream = self._streams.get(number)
        if stream is not None:
            _widen(stream, size)

    def _require_begun(self, number: int) -> None:
        """Those begun after our last word are let be."""
        if not number & 1 or (number > self._last_stream and not self._has_left):
            raise H2ProtocolError(Code.PROTOCOL_ERROR, "a frame of a stream that has not begun")

    def _spend(self, cost: int = 1) -> None:
        if not self._patience.spend(cost):
            raise H2ProtocolError(Code.ENHANCE_YOUR_CALM, "too many frames that carry nothing")

    def _leave_for_good(self) -> None:
        self._has_left = True
        self.write(frames.goaway(self._last_stream, Code.NO_ERROR))
        if not self._streams:
            self._wire.finish()


def _widen(stream: Stream, size: int) -> None:
    """Its own window; it does not wait for one."""
    stream.send_window = widened(stream.send_window, size)
    stream.pump()
