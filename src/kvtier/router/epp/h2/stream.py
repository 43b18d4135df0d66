"""One call: its messages in both directions, flow control, and its end.

The service's side is a `Handler` that is called as messages arrive, without a task or a queue in
between, so that an answer that is known at once goes out in the same write as its end.
Invariants: while a handler holds the stream, or its answers are unsent, messages are queued and
the client's window does not grow; input after the end of the answer is discarded; `closed` is
called once, whatever ends the stream, and nothing is called after it.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from kvtier.router.epp.h2 import frames, grpc, headers
from kvtier.router.epp.h2.calls import Handler, StreamCarrier
from kvtier.router.epp.h2.frames import Code, H2ProtocolError
from kvtier.router.epp.h2.grpc import GrpcStatus

_log = logging.getLogger(__name__)

_AROUND_BYTES: Final = 128
"""An upper bound of the headers, trailers and RST_STREAM around messages."""
_BATCH_BYTES: Final = 1 << 16
"""How much is taken from the messages to send at a time."""
_SPARED_BYTES: Final = 1 << 17
"""An incomplete message of this size is buffered even when the memory budget is exhausted: it may
be a chunk of an answer that is under way, or a body that its service can refuse in its own format.
Frames may split messages anywhere."""


class Stream:
    """A call on a connection; implements `calls.Call` and `calls.Sender`."""

    __slots__ = (
        "_assembler", "_carrier", "_has_begun", "_inbox", "_is_ended_by_us", "_is_held",
        "_is_taking", "_messages", "_owed_bytes", "_part_bytes", "_receive_window", "_rest",
        "_trailers", "_unconsumed_bytes", "_unread_checks", "handler", "is_half_closed",
        "is_over", "number", "send_window",
    )  # fmt: skip

    def __init__(self, carrier: StreamCarrier, number: int, send_window: int) -> None:
        self._carrier = carrier
        self.number = number
        self.send_window = send_window
        self.handler: Handler | None = None
        self.is_half_closed = False
        """True once the client has ended its side."""
        self.is_over = False
        self._receive_window = carrier.limits.stream_window_bytes
        self._assembler = grpc.Assembler(carrier.limits.max_message_bytes)
        self._inbox: deque[bytes | None] = deque()
        """Messages to deliver; None is the end of the client's side."""
        self._messages: deque[Iterator[bytes]] = deque()
        self._rest = memoryview(b"")
        self._trailers = b""
        self._has_begun = False
        self._is_ended_by_us = False
        self._is_held = False
        self._is_taking = False
        self._owed_bytes = self._unconsumed_bytes = self._part_bytes = 0
        self._unread_checks = 0

    @property
    def has_answered(self) -> bool:
        """True once anything was sent."""
        return self._has_begun

    def send(self, messages: Iterable[bytes]) -> None:
        """Send the messages in order; each is taken from the iterable only when it fits."""
        if self.is_over or self._is_ended_by_us:
            return
        if not self._has_begun:
            self._begin()
        self._messages.append(iter(messages))
        self.pump()

    def end(self, status: GrpcStatus = GrpcStatus.OK, message: str = "") -> None:
        """End the call after everything that was given to `send`."""
        if self.is_over or self._is_ended_by_us:
            return
        self._is_ended_by_us = True
        if not self._has_begun:
            self._trailers = headers.trailers_only(status, message)
        elif status is GrpcStatus.OK and not message:
            self._trailers = headers.OK_TRAILERS
        else:
            self._trailers = headers.trailers(status, message)
        self._discard_input()
        self._finish()

    def try_finish(self, messages: Sequence[bytes]) -> bool:
        """Send the messages and end the call in one piece; return False if that is impossible."""
        carrier = self._carrier
        size = sum(len(message) + grpc.PREFIX_BYTES for message in messages)
        if self._rest or self._messages or size > min(self.send_window, carrier.send_window):
            return False
        pieces = 1 + size // carrier.peer_frame_bytes
        if not carrier.fits_one_write(size + pieces * frames.HEAD_BYTES + _AROUND_BYTES):
            return False
        self.send(messages)
        self.end()
        return True

    def abort(self, status: GrpcStatus, message: str) -> None:
        """End the call now. If part of an answer is unsent, reset the stream without a status."""
        if self._rest or self._messages:
            self._carrier.write(frames.reset(self.number, Code.INTERNAL_ERROR))
            self._be_over()
        else:
            self.end(status, message)

    def hold(self) -> None:
        """Queue messages from now on instead of delivering them."""
        self._is_held = True

    def release(self) -> None:
        """Deliver the queued messages, and those that follow."""
        self._is_held = False
        self._deliver()

    def refuse(self, http_status: int) -> None:
        """Answer a request that is not a gRPC call."""
        self._is_ended_by_us = True
        self._trailers = headers.http_error(http_status)
        self._finish()

    def feed(self, data: bytes, size: int) -> None:
        """Take the content of a DATA frame; `size` includes its padding.

        Raises H2ProtocolError if the client exceeds the stream's window.
        """
        self._receive_window -= size
        if self._receive_window < 0:
            raise H2ProtocolError(Code.FLOW_CONTROL_ERROR, "DATA exceeds the stream's window")
        if self._is_ended_by_us:
            self._carrier.consumed(size)
            return
        self._unconsumed_bytes += size
        try:
            messages = self._assembler.feed(data)
        except grpc.InvalidMessage as error:
            self.abort(error.status, str(error))
            return
        if not self._keep_part():
            self._reject_part()
            return
        if messages:
            self._inbox.extend(messages)
            self._deliver()
        elif not self._is_busy:
            self._consume()

    def half_close(self) -> None:
        """Note that the client has ended its side."""
        self.is_half_closed = True
        self._inbox.append(None)
        self._deliver()

    def stop(self) -> None:
        """Tell the handler that the server is shutting down."""
        if self.handler is not None:
            _call(self.handler.stopping)

    def check(self) -> None:
        """Abort the call if nothing could be sent for `unread_checks` calls of this method."""
        if self._rest:
            self._unread_checks += 1
            if self._unread_checks > self._carrier.limits.unread_checks:
                self.abort(GrpcStatus.UNAVAILABLE, "the answer was not read in time")

    def cancel(self) -> None:
        """End the stream without sending anything: the client or the connection has ended it."""
        if not self.is_over:
            self._be_over()

    def pump(self) -> None:
        """Send as much as the flow-control windows and the socket allow."""
        carrier = self._carrier
        had_some = False
        while self._rest or self._refill():
            had_some = True
            size = min(
                len(self._rest), self.send_window, carrier.send_window, carrier.peer_frame_bytes
            )
            if size <= 0 or not carrier.can_write():
                if self.send_window > 0:  # a WINDOW_UPDATE of the stream itself calls pump
                    carrier.enqueue(self)
                return
            self._unread_checks = 0
            self.send_window -= size
            carrier.send_window -= size
            carrier.write(frames.head(frames.DATA, 0, self.number, size))
            carrier.write(self._rest[:size])
            self._rest = self._rest[size:]
        if had_some and not self.is_over:
            self._all_sent()

    def _all_sent(self) -> None:
        if self._is_ended_by_us:
            self._finish()
        elif self.handler is not None:
            _call(self.handler.sent)
            self._deliver()

    def _refill(self) -> bool:
        """Frame the next messages to send; return False if there are none."""
        pieces: list[bytes] = []
        size = 0
        while self._messages and size < _BATCH_BYTES:
            message = self._next()
            if message is not None:
                pieces += (grpc.prefix(len(message)), message)
                size += len(message)
        if self.is_over:  # producing a message failed
            return False
        self._rest = memoryview(b"".join(pieces))
        return bool(pieces)

    def _next(self) -> bytes | None:
        """Return the next message of the oldest `send`; None, and remove it, at its end."""
        try:
            message = next(self._messages[0], None)
        except Exception:
            _log.exception("producing a message failed")
            self.abort(GrpcStatus.INTERNAL, "internal server error")
            return None
        if message is None:
            self._messages.popleft()
        return message

    def _begin(self) -> None:
        self._has_begun = True
        block = headers.RESPONSE
        self._carrier.write(frames.frame(frames.HEADERS, frames.END_HEADERS, self.number, block))

    def _finish(self) -> None:
        """Send the trailers, unless data is still to be sent before them."""
        if self._rest or self._messages or self.is_over:
            return
        flags = frames.END_HEADERS | frames.END_STREAM
        self._carrier.write(frames.frame(frames.HEADERS, flags, self.number, self._trailers))
        if not self.is_half_closed:
            # NO_ERROR: the client may stop sending what is not read anymore.
            self._carrier.write(frames.reset(self.number, Code.NO_ERROR))
        self._be_over()

    def _be_over(self) -> None:
        self.is_over = True
        self._messages.clear()
        self._rest = memoryview(b"")
        self._discard_input()
        self._carrier.remove(self)
        handler, self.handler = self.handler, None  # breaks the reference cycle
        if handler is not None:
            _call(handler.closed)

    def _discard_input(self) -> None:
        """Discard the input, and return its memory and window."""
        self._inbox.clear()
        self._assembler.clear()
        self._carrier.memory.release(self._part_bytes)
        self._part_bytes = 0
        self._carrier.consumed(self._unconsumed_bytes)
        self._unconsumed_bytes = 0

    @property
    def _is_busy(self) -> bool:
        return self._is_held or bool(self._rest) or bool(self._messages)

    def _deliver(self) -> None:
        """Pass queued messages to the handler until it is busy.

        A call from within the handler returns at once, so that the handler is done with one message
        before it gets the next.
        """
        if self._is_taking:
            return
        self._is_taking = True
        while self._inbox and not self.is_over and not self._is_busy:
            self._take(self._inbox.popleft())
        self._is_taking = False
        if not self.is_over and not self._is_busy:
            self._consume()

    def _take(self, message: bytes | None) -> None:
        if self.handler is None:
            return
        try:
            if message is None:
                self.handler.half_closed()
            else:
                self.handler.receive(message)
        except Exception:
            _log.exception("a gRPC handler failed")
            self.abort(GrpcStatus.INTERNAL, "internal server error")

    def _consume(self) -> None:
        """Let the client send again as much as was delivered."""
        size, self._unconsumed_bytes = self._unconsumed_bytes, 0
        if not size:
            return
        self._carrier.consumed(size)
        self._owed_bytes += size
        if self._owed_bytes * 2 >= self._carrier.limits.stream_window_bytes:
            if not self.is_half_closed:
                self._carrier.write(frames.window_update(self.number, self._owed_bytes))
            self._receive_window += self._owed_bytes
            self._owed_bytes = 0

    def _keep_part(self) -> bool:
        part_bytes = self._assembler.part_bytes
        if part_bytes != self._part_bytes:
            if not self._carrier.memory.take(part_bytes - self._part_bytes):
                return part_bytes <= _SPARED_BYTES
            self._part_bytes = part_bytes
        return True

    def _reject_part(self) -> None:
        if self.handler is not None:
            _call(self.handler.out_of_memory)
        if not self._is_ended_by_us:
            self.abort(GrpcStatus.RESOURCE_EXHAUSTED, "too much at once; try again later")


def _call(method: Callable[[], None]) -> None:
    """Call a method of a handler and log its exceptions."""
    try:
        method()
    except Exception:
        _log.exception("a gRPC handler failed")
