"""One call: messages in both directions, within what both sides allow, and its end.

The service's side is a `Handler`, called as messages come; nothing waits in between, so that an
answer that is known at once goes out with the same write as its end. Invariants: while a handler
holds the stream, or its answers have not gone out, messages wait and the client is given no more
room; what comes once the end is known is not kept; `closed` is called once, whatever ends the
stream, and nothing is called after it.
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
"""Of headers, trailers and a reset around messages; more than there are."""
_CUT_BYTES: Final = 1 << 16
"""Of messages that are made ready at a time."""
_SPARED_BYTES: Final = 1 << 17
"""Of a part of a message, to be kept even where nothing more may be: a chunk of an answer that is
under way, or a body that its service can refuse as it likes. Frames cut them anywhere."""


class Stream:
    """Made by its connection, which gives it what comes."""

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
        """By the client."""
        self.is_over = False
        self._receive_window = carrier.limits.stream_window_bytes
        self._assembler = grpc.Assembler(carrier.limits.max_message_bytes)
        self._inbox: deque[bytes | None] = deque()
        """Messages that wait; None: the client's end."""
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
        """Whether anything was sent."""
        return self._has_begun

    def send(self, messages: Iterable[bytes]) -> None:
        """One after the other, made only as there is room for them."""
        if self.is_over or self._is_ended_by_us:
            return
        if not self._has_begun:
            self._begin()
        self._messages.append(iter(messages))
        self.pump()

    def end(self, status: GrpcStatus = GrpcStatus.OK, message: str = "") -> None:
        """After all that was given to `send`."""
        if self.is_over or self._is_ended_by_us:
            return
        self._is_ended_by_us = True
        if not self._has_begun:
            self._trailers = headers.only_trailers(status, message)
        elif status is GrpcStatus.OK and not message:
            self._trailers = headers.OK_TRAILERS
        else:
            self._trailers = headers.trailers(status, message)
        self._drop()
        self._finish()

    def finish(self, messages: Sequence[bytes]) -> bool:
        """See Call."""
        carrier = self._carrier
        size = sum(len(message) + grpc.PREFIX_BYTES for message in messages)
        if self._rest or self._messages or size > min(self.send_window, carrier.send_window):
            return False
        pieces = 1 + size // carrier.peer_frame_bytes
        if not carrier.can_unite(size + pieces * frames.HEAD_BYTES + _AROUND_BYTES):
            return False
        self.send(messages)
        self.end()
        return True

    def cut(self, status: GrpcStatus, message: str) -> None:
        """End now. Where an answer has gone out in part, the client is not told more than that."""
        if self._rest or self._messages:
            self._carrier.write(frames.reset(self.number, Code.INTERNAL_ERROR))
            self._be_over()
        else:
            self.end(status, message)

    def hold(self) -> None:
        """Messages wait from now on."""
        self._is_held = True

    def release(self) -> None:
        """Those that wait come now."""
        self._is_held = False
        self._take_waiting()

    def refuse(self, http_status: int) -> None:
        """It is no call of gRPC."""
        self._is_ended_by_us = True
        self._trailers = headers.refused(http_status)
        self._finish()

    def feed(self, data: bytes, size: int) -> None:
        """What came in a DATA frame; `size` counts its padding. Raises H2ProtocolError."""
        self._receive_window -= size
        if self._receive_window < 0:
            raise H2ProtocolError(Code.FLOW_CONTROL_ERROR, "more than the stream's window")
        if self._is_ended_by_us:
            self._carrier.consumed(size)
            return
        self._unconsumed_bytes += size
        try:
            messages = self._assembler.feed(data)
        except grpc.Unreadable as error:
            self.cut(error.status, str(error))
            return
        if not self._keep_part():
            self._crowd()
            return
        if messages:
            self._inbox.extend(messages)
            self._take_waiting()
        elif not self._is_busy:
            self._consume()

    def half_close(self) -> None:
        """The client ended its side."""
        self.is_half_closed = True
        self._inbox.append(None)
        self._take_waiting()

    def stop(self) -> None:
        """The server is going away."""
        if self.handler is not None:
            _tell(self.handler.stopping)

    def check(self) -> None:
        """Called now and then; progress in between is seen by `pump`."""
        if self._rest:
            self._unread_checks += 1
            if self._unread_checks > self._carrier.limits.unread_checks:
                self.cut(GrpcStatus.UNAVAILABLE, "the answer is not read")

    def lose(self) -> None:
        """The client, or the connection, ended all of it."""
        if not self.is_over:
            self._be_over()

    def pump(self) -> None:
        """Send what may be sent."""
        carrier = self._carrier
        had_some = False
        while self._rest or self._refill():
            had_some = True
            size = min(
                len(self._rest), self.send_window, carrier.send_window, carrier.peer_frame_bytes
            )
            if size <= 0 or not carrier.has_room():
                if self.send_window > 0:  # else whoever widens it pumps
                    carrier.wait(self)
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
            _tell(self.handler.sent)
            self._take_waiting()

    def _refill(self) -> bool:
        """Whether there is more."""
        pieces: list[bytes] = []
        size = 0
        while self._messages and size < _CUT_BYTES:
            message = self._next()
            if message is not None:
                pieces += (grpc.prefix(len(message)), message)
                size += len(message)
        if self.is_over:  # a message could not be made
            return False
        self._rest = memoryview(b"".join(pieces))
        return bool(pieces)

    def _next(self) -> bytes | None:
        """Of the first that have been given; None: they are done with."""
        try:
            message = next(self._messages[0], None)
        except Exception:
            _log.exception("a call failed")
            self.cut(GrpcStatus.INTERNAL, "the server failed")
            return None
        if message is None:
            self._messages.popleft()
        return message

    def _begin(self) -> None:
        self._has_begun = True
        block = headers.RESPONSE
        self._carrier.write(frames.frame(frames.HEADERS, frames.END_HEADERS, self.number, block))

    def _finish(self) -> None:
        """The end, if nothing is left to go before it."""
        if self._rest or self._messages or self.is_over:
            return
        flags = frames.END_HEADERS | frames.END_STREAM
        self._carrier.write(frames.frame(frames.HEADERS, flags, self.number, self._trailers))
        if not self.is_half_closed:
            # Of no error: the client may stop sending what nobody reads any more.
            self._carrier.write(frames.reset(self.number, Code.NO_ERROR))
        self._be_over()

    def _be_over(self) -> None:
        self.is_over = True
        self._messages.clear()
        self._rest = memoryview(b"")
        self._drop()
        self._carrier.forget(self)
        handler, self.handler = self.handler, None  # no cycle is left for the collector
        if handler is not None:
            _tell(handler.closed)

    def _drop(self) -> None:
        """What has come is not read any more."""
        self._inbox.clear()
        self._assembler.clear()
        self._carrier.allowance.give(self._part_bytes)
        self._part_bytes = 0
        self._carrier.consumed(self._unconsumed_bytes)
        self._unconsumed_bytes = 0

    @property
    def _is_busy(self) -> bool:
        return self._is_held or bool(self._rest) or bool(self._messages)

    def _take_waiting(self) -> None:
        """In a loop and not from within a handler, so that one message is done before the next."""
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
            _log.exception("a call failed")
            self.cut(GrpcStatus.INTERNAL, "the server failed")

    def _consume(self) -> None:
        """Give the client room again for what was taken."""
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
            if not self._carrier.allowance.take(part_bytes - self._part_bytes):
                return part_bytes <= _SPARED_BYTES
            self._part_bytes = part_bytes
        return True

    def _crowd(self) -> None:
        if self.handler is not None:
            _tell(self.handler.crowded)
        if not self._is_ended_by_us:
            self.cut(GrpcStatus.RESOURCE_EXHAUSTED, "too much at once; try again later")


def _tell(word: Callable[[], None]) -> None:
    """A handler's mistake is its own."""
    try:
        word()
    except Exception:
        _log.exception("a call failed")
