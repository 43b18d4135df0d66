"""The contracts between a service, the stream that carries its call, and the stream's connection.

They are protocols so that a service knows nothing of HTTP/2 and a stream knows nothing of its
socket. Everything here belongs to the event loop's thread, and no method may block.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from kvtier.router.epp.h2.grpc import GrpcStatus
from kvtier.router.epp.h2.limits import H2Limits, MemoryBudget


class Call(Protocol):
    """The side of a call that a service answers through; `stream.Stream` implements it."""

    @property
    def is_over(self) -> bool:
        """True once nothing more can be sent."""
        ...

    def send(self, messages: Iterable[bytes]) -> None:
        """Send the messages in order; each is taken from the iterable only when it fits."""
        ...

    def end(self, status: GrpcStatus = GrpcStatus.OK, message: str = "") -> None:
        """End the call after everything that was given to `send`."""
        ...

    def try_finish(self, messages: Sequence[bytes]) -> bool:
        """Send the messages and end the call so that the client reads both at once.

        Return False, and send nothing, if that is impossible.
        """
        ...

    def abort(self, status: GrpcStatus, message: str) -> None:
        """End the call now. If part of an answer is unsent, reset the stream without a status."""
        ...

    def hold(self) -> None:
        """Queue messages from now on instead of delivering them."""
        ...

    def release(self) -> None:
        """Deliver the queued messages, and those that follow."""
        ...


class Handler(Protocol):
    """The service's side of a call: what its stream calls. No method may block."""

    def receive(self, message: bytes) -> None:
        """Handle the client's next message."""
        ...

    def half_closed(self) -> None:
        """Note that the client sends no more messages."""
        ...

    def sent(self) -> None:
        """Note that everything given to `send` has been written; the call is still open."""
        ...

    def closed(self) -> None:
        """Clean up: the call is over, successfully or not."""
        ...

    def out_of_memory(self) -> None:
        """Refuse the message that is arriving: the memory budget has no room for it.

        This is the service's chance to answer in its own format. A call that it does not end here
        is aborted.
        """
        ...

    def stopping(self) -> None:
        """End the call if it would stay open for long: the server is shutting down."""
        ...


Service = Callable[[Call], Handler]
Services = Mapping[bytes, Service]
"""Services by the path of their method."""


class Sender(Protocol):
    """A stream as its connection sees it."""

    number: int

    def pump(self) -> None:
        """Send as much as the flow-control windows and the socket allow."""
        ...


class StreamCarrier(Protocol):
    """A connection as its streams see it."""

    limits: H2Limits
    memory: MemoryBudget
    send_window: int

    @property
    def peer_frame_bytes(self) -> int:
        """The longest frame payload that the peer accepts."""
        ...

    def write(self, data: bytes | memoryview) -> None:
        """Buffer `data` for the next flush."""
        ...

    def can_write(self) -> bool:
        """Return True if the socket takes more data now."""
        ...

    def fits_one_write(self, size: int) -> bool:
        """Return True if the peer will read the next `size` bytes in one piece.

        The connection then makes sure of that.
        """
        ...

    def enqueue(self, stream: Sender) -> None:
        """Call the stream's `pump` when the connection can send again.

        Not for streams whose own window is empty.
        """
        ...

    def consumed(self, size: int) -> None:
        """Count `size` bytes of DATA as processed, whatever their stream."""
        ...

    def remove(self, stream: Sender) -> None:
        """Remove a stream that has ended."""
        ...
