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
from kvtier.router.epp.h2.limits import (
    FrameBudget,
    H2Limits,
    MemoryBudget,
    PeerSettings,
    grown_window,
)
from kvtier.router.epp.h2.stream import Stream

_STREAMS_PER_FRAME: Final = 64
"""Visiting this many streams costs about as much as handling a frame."""
_SHUTDOWN_PING: Final = b"leaving!"
_LIVENESS_PING: Final = b"living??"


class ServerContext:
    """What all connections of a server share: its services, limits and caches."""

    def __init__(
        self,
        services: Services,
        limits: H2Limits,
        memory: MemoryBudget,
        clock: Clock,
        on_broken: Callable[[], None],
    ) -> None:
        """`on_broken` is called when a connection ends because its client violated the protocol."""
        self.services = services
        self.limits = limits
        self.memory = memory
        self.clock = clock
        self.header_cache = headers.HeaderCache()
        self.on_broken = on_broken
        self.is_stopping = False
        """True once the server accepts no more connections."""


class Wire(Protocol):
    """A socket as its session sees it."""

    def write(self, data: bytes | memoryview) -> None:
        """Buffer `data` for the next flush."""
        ...

    def can_write(self) -> bool:
        """Return True if the socket takes more data now."""
        ...

    def fits_one_write(self, size: int) -> bool:
        """Return True if the client will read the next `size` bytes in one piece."""
        ...

    def close_soon(self) -> None:
        """Close the socket once everything has been sent."""
        ...


class Session:
    """The state of one connection and its streams; implements `calls.StreamCarrier`.

    Call `begin`, then `take` with each frame.
    """

    def __init__(self, context: ServerContext, wire: Wire) -> None:
        self._context = context
        self._wire = wire
        self.limits = context.limits
        self.memory = context.memory
        self.write = wire.write
        self.can_write = wire.can_write
        self.fits_one_write = wire.fits_one_write
        self.send_window = frames.DEFAULT_WINDOW_BYTES
        self._receive_window = self.limits.connection_window_bytes
        self._consumed_bytes = 0
        self._peer = PeerSettings()
        self._decoder = headers.HeaderDecoder(context.header_cache)
        self._budget = FrameBudget(self.limits, context.clock)
        self._streams: dict[int, Stream] = {}
        self._waiting: dict[Sender, None] = {}
        self._last_stream = 0
        self._block: headers.HeaderBlock | None = None
        """A header block that continues in the next frame."""
        self.has_begun = False
        """True once the client's SETTINGS have arrived."""
        self._is_stopping = self._sent_final_goaway = False
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
        """Send the server's SETTINGS and open the connection's window."""
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

    # Called by the streams.

    @property
    def peer_frame_bytes(self) -> int:
        """The longest frame payload that the client accepts."""
        return self._peer.frame_bytes

    def enqueue(self, stream: Sender) -> None:
        """Call the stream's `pump` when the connection can send again."""
        self._waiting[stream] = None

    def consumed(self, size: int) -> None:
        """Count `size` bytes of DATA as processed; reopen the window when half of it is."""
        self._consumed_bytes += size
        if self._consumed_bytes * 2 >= self.limits.connection_window_bytes:
            self._receive_window += self._consumed_bytes
            self.write(frames.window_update(0, self._consumed_bytes))
            self._consumed_bytes = 0

    def remove(self, stream: Sender) -> None:
        """Remove a stream that has ended; close the connection if it was the last at shutdown."""
        self._streams.pop(stream.number, None)
        self._waiting.pop(stream, None)
        if self._sent_final_goaway and not self._streams:
            self._wire.close_soon()

    # Called by the connection.

    def take(self, frame: frames.Frame) -> None:
        """Handle one frame. Raises H2ProtocolError."""
        kind, flags, number, payload = frame
        if not self.has_begun:
            if kind != frames.SETTINGS or flags & frames.ACK:
                raise H2ProtocolError(Code.PROTOCOL_ERROR, "the first frame must be SETTINGS")
            self.has_begun = True
        if self._block is not None and kind != frames.CONTINUATION:
            raise H2ProtocolError(Code.PROTOCOL_ERROR, "a header block is interrupted")
        act = self._on.get(kind)
        if act is None:
            self._spend()  # frames of unknown types are ignored
        else:
            act(flags, number, payload)

    def pump(self) -> None:
        """Let the enqueued streams send, in turn, until the connection is full again."""
        for _ in range(len(self._waiting)):
            if self.send_window <= 0 or not self._waiting or not self.can_write():
                return
            stream = next(iter(self._waiting))
            del self._waiting[stream]
            stream.pump()

    def check(self) -> None:
        """Abort streams whose answer has not been read for long; call this periodically."""
        for stream in list(self._streams.values()):
            stream.check()

    def ping(self) -> None:
        """Send a PING, which a living client answers."""
        self.write(frames.frame(frames.PING, 0, 0, _LIVENESS_PING))

    def shut_down(self) -> None:
        """Begin a graceful shutdown (RFC 9113, section 6.8).

        Streams that the client opens before it has received the GOAWAY are still answered.
        """
        if self._is_stopping:
            return
        self._is_stopping = True
        for stream in list(self._streams.values()):
            stream.stop()
        self.write(frames.goaway(frames.MAX_STREAM, Code.NO_ERROR))
        self.write(frames.frame(frames.PING, 0, 0, _SHUTDOWN_PING))

    def end(self, code: Code, message: str) -> None:
        """Cancel every stream and send a GOAWAY with the reason."""
        self.cancel_streams()
        self.write(frames.goaway(self._last_stream, code, message))

    def abort_streams(self, message: str) -> None:
        """Abort every stream with UNAVAILABLE and send a GOAWAY."""
        for stream in list(self._streams.values()):
            stream.abort(grpc.GrpcStatus.UNAVAILABLE, message)
        self.write(frames.goaway(self._last_stream, Code.NO_ERROR, message))

    def cancel_streams(self) -> None:
        """End every stream without sending anything."""
        for stream in list(self._streams.values()):
            stream.cancel()

    # Handlers of the frame types.

    def _on_data(self, flags: int, number: int, payload: bytes) -> None:
        size = len(payload)
        self._receive_window -= size
        if self._receive_window < 0:
            raise H2ProtocolError(Code.FLOW_CONTROL_ERROR, "DATA exceeds the connection's window")
        self._require_begun(number)
        ends = flags & frames.END_STREAM
        if not size and not ends:
            self._spend()
        stream = self._streams.get(number)
        data = frames.content(flags & frames.PADDED, payload) if flags & frames.PADDED else payload
        if stream is None:
            self.consumed(size)  # it was in flight when the stream ended
        elif stream.is_half_closed:
            raise H2ProtocolError(Code.STREAM_CLOSED, "DATA after the end of its stream")
        else:
            stream.feed(data, size)
            if ends and not stream.is_over:
                stream.half_close()

    def _on_headers(self, flags: int, number: int, payload: bytes) -> None:
        if not number & 1:
            raise H2ProtocolError(Code.PROTOCOL_ERROR, "a client's streams have odd numbers")
        part = frames.content(flags & (frames.PADDED | frames.HAS_PRIORITY), payload)
        if flags & frames.END_HEADERS:
            self._on_block(flags, number, part)
        else:
            self._block = headers.HeaderBlock(number, flags, part)

    def _on_continuation(self, flags: int, number: int, payload: bytes) -> None:
        block = self._block
        if block is None or block.stream != number:
            raise H2ProtocolError(Code.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
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
        except headers.HeadersTooLong:
            call = None
        ends = bool(flags & frames.END_STREAM)
        if number <= self._last_stream:
            self._on_client_trailers(number, ends=ends)
            return
        if self._sent_final_goaway:
            return  # above the final GOAWAY's last stream: the client knows that it has to retry
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
            raise H2ProtocolError(Code.PROTOCOL_ERROR, "trailers do not end their stream")
        stream.half_close()

    def _open(self, number: int, call: headers.CallHeaders | None, *, ends: bool) -> None:
        stream = Stream(self, number, self._peer.window_bytes)
        stream.is_half_closed = ends
        self._streams[number] = stream
        if call is None:
            stream.end(grpc.GrpcStatus.RESOURCE_EXHAUSTED, "the headers are too long")
        elif call.method != b"POST":
            stream.refuse(405)
        elif not call.content_type.startswith(b"application/grpc"):
            stream.refuse(415)
        else:
            service = self._context.services.get(call.path)
            if service is None:
                stream.end(grpc.GrpcStatus.UNIMPLEMENTED, "there is no such method")
            else:
                stream.handler = service(stream)
                if self._is_stopping:
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
            stream.cancel()

    def _on_settings(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise H2ProtocolError(Code.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & frames.ACK:
            if payload:
                raise H2ProtocolError(Code.FRAME_SIZE_ERROR, "a SETTINGS ACK has a payload")
            self._decoder.disable_table()
            return
        more_bytes = self._peer.apply(payload)
        self._spend(1 + len(self._streams) // _STREAMS_PER_FRAME if more_bytes else 1)
        self.write(frames.frame(frames.SETTINGS, frames.ACK, 0))
        if more_bytes:
            for stream in list(self._streams.values()):
                _grow_window(stream, more_bytes)

    def _on_promise(self, flags: int, number: int, payload: bytes) -> None:
        del flags, number, payload
        raise H2ProtocolError(Code.PROTOCOL_ERROR, "a client may not send PUSH_PROMISE")

    def _on_ping(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise H2ProtocolError(Code.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != frames.PING_BYTES:
            raise H2ProtocolError(Code.FRAME_SIZE_ERROR, "PING of a wrong size")
        self._spend()
        if not flags & frames.ACK:
            self.write(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif payload == _SHUTDOWN_PING and self._is_stopping and not self._sent_final_goaway:
            self._send_final_goaway()

    def _on_goaway(self, flags: int, number: int, payload: bytes) -> None:
        del flags, number, payload
        self._spend()  # the client opens no more streams, and closes when it has its answers

    def _on_window(self, flags: int, number: int, payload: bytes) -> None:
        del flags
        size = frames.number(payload) & frames.MAX_WINDOW_BYTES
        if not size:
            raise H2ProtocolError(Code.PROTOCOL_ERROR, "a WINDOW_UPDATE of zero")
        if not number:
            self.send_window = grown_window(self.send_window, size)
            self.pump()
            return
        self._require_begun(number)
        stream = self._streams.get(number)
        if stream is not None:
            _grow_window(stream, size)

    def _require_begun(self, number: int) -> None:
        """Raise H2ProtocolError for a stream that was never opened.

        Streams that were opened after the final GOAWAY are ignored.
        """
        if not number & 1 or (number > self._last_stream and not self._sent_final_goaway):
            raise H2ProtocolError(Code.PROTOCOL_ERROR, "a frame on a stream that is not open")

    def _spend(self, cost: int = 1) -> None:
        if not self._budget.spend(cost):
            raise H2ProtocolError(Code.ENHANCE_YOUR_CALM, "too many frames that carry nothing")

    def _send_final_goaway(self) -> None:
        self._sent_final_goaway = True
        self.write(frames.goaway(self._last_stream, Code.NO_ERROR))
        if not self._streams:
            self._wire.close_soon()


def _grow_window(stream: Stream, size: int) -> None:
    """Grow the stream's own send window and send what it had no window for."""
    stream.send_window = grown_window(stream.send_window, size)
    stream.pump()
