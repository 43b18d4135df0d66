"""A call between the service that answers it and the connection that carries it.

Why protocols: a service knows nothing of HTTP/2, and a stream knows nothing of its socket.
All of it belongs to the event loop's thread, and nothing in it may wait.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from kvtier.router.epp.h2.grpc import GrpcStatus
from kvtier.router.epp.h2.limits import Allowance, H2Limits


class Call(Protocol):
    """What a service answers with; `stream.Stream` is one."""

    @property
    def is_over(self) -> bool:
        """Whether nothing can be sent any more."""
        ...

    def send(self, messages: Iterable[bytes]) -> None:
        """One after the other, made only as there is room for them."""
        ...

    def end(self, status: GrpcStatus = GrpcStatus.OK, message: str = "") -> None:
        """After all that was given to `send`."""
        ...

    def finish(self, messages: Sequence[bytes]) -> bool:
        """Send these and end, so that the client reads them and the end at once.

        False where that cannot be; then nothing was sent.
        """
        ...

    def cut(self, status: GrpcStatus, message: str) -> None:
        """End now. Where an answer has gone out in part, the client is not told more than that."""
        ...

    def hold(self) -> None:
        """Messages wait from now on."""
        ...

    def release(self) -> None:
        """Those that wait come now."""
        ...


class Handler(Protocol):
    """A call as its service sees it. None of these may wait."""

    def receive(self, message: bytes) -> None:
        """The next message."""
        ...

    def half_closed(self) -> None:
        """The client will send no more."""
        ...

    def sent(self) -> None:
        """All that was given to `send` has gone out; the stream is still there."""
        ...

    def closed(self) -> None:
        """The stream is over, in good order or not."""
        ...

    def crowded(self) -> None:
        """There is no memory for the message that is coming.

        The last chance to say so in the service's own words: a call that is not ended is cut.
        """
        ...

    def stopping(self) -> None:
        """The server is going away: a call that would stay for long ends now."""
        ...


Service = Callable[[Call], Handler]
Services = Mapping[bytes, Service]
"""By path."""


class Sender(Protocol):
    """A stream as its connection knows it."""

    number: int

    def pump(self) -> None:
        """Send what may be sent."""
        ...


class StreamCarrier(Protocol):
    """The connection, as far as its streams need it."""

    limits: H2Limits
    allowance: Allowance
    send_window: int

    @property
    def peer_frame_bytes(self) -> int:
        """The longest payload that the peer takes."""
        ...

    def write(self, data: bytes | memoryview) -> None:
        """Goes out with the next flush."""
        ...

    def has_room(self) -> bool:
        """Whether the socket takes more now."""
        ...

    def can_unite(self, size: int) -> bool:
        """Whether what is written next, of `size` bytes, will be read as one; it is then."""
        ...

    def wait(self, stream: Sender) -> None:
        """`pump` it when there is room. Not for streams without a window of their own."""
        ...

    def consumed(self, size: int) -> None:
        """So many bytes of DATA have been taken, whatever the stream."""
        ...

    def forget(self, stream: Sender) -> None:
        """It is over."""
        ...
