"""One request's answer, for whoever reads it: waited for, read whole, or passed on as it comes.

Invariants: an answer that breaks off is never taken for a whole one; who takes pieces slowly holds
the replica back; after `close` nothing is told any more. Belongs to the event loop's thread.
"""

import asyncio
from typing import Final, Protocol

import msgspec

from kvtier.router.request.message import Fields

SWITCHING: Final = 101
"""From here on the connection carries another protocol, both ways."""
BODILESS: Final = (SWITCHING, 204, 304)
"""Such an answer ends with its head, whatever that says of a body."""
_HELD_BYTES: Final = 256 * 1024
"""Of a body that nobody takes yet; then the replica is held back."""


class BrokenOff(ConnectionError):
    """The answer ended before its end, or was none."""


class Head(msgspec.Struct, frozen=True):
    """The beginning of an answer."""

    status: int
    reason: bytes
    fields: Fields
    length: int | None
    """Of the body in bytes; None: it comes in chunks, or until the connection ends."""
    has_body: bool = True
    """False: it ends with its head. `length` is then of what would have followed."""


class ResponseSink(Protocol):
    """Takes an answer's body, piece by piece. Nothing here may raise or wait."""

    def take(self, piece: bytes) -> None:
        """The next bytes."""
        ...

    def finish(self, piece: bytes) -> None:
        """The last bytes, or none: the answer is whole."""
        ...

    def fail(self, error: BrokenOff) -> None:
        """Nothing more comes, and something is missing."""
        ...

    def on_room(self) -> None:
        """The replica takes again what is written to it."""


class ReplicaTransport(Protocol):
    """The connection that an answer comes on."""

    def pause(self) -> None:
        """Read nothing."""
        ...

    def resume(self) -> None:
        """Read."""
        ...

    def write(self, data: bytes | memoryview) -> bool:
        """More, after an upgrade. False: no more for now."""
        ...

    def abort(self) -> None:
        """End at once: nobody wants what is under way."""
        ...


class ReplicaExchange:
    """One request's answer. Its reader calls `close` at the end, whatever happened."""

    __slots__ = ("_carrier", "_error", "_held", "_is_late", "_sink", "_waiter", "head", "is_whole")

    def __init__(self, carrier: ReplicaTransport) -> None:
        self._carrier: ReplicaTransport | None = carrier
        self._held: list[bytes] = []
        self._sink: ResponseSink | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._error: BrokenOff | None = None
        self._is_late = False
        self.head: Head | None = None
        self.is_whole = False

    async def begin(self, within_s: float = 0.0) -> Head:
        """Wait for the first bytes of the body, or its end. Raises BrokenOff.

        Raises TimeoutError when they do not come `within_s`; 0: whenever they come.
        """
        timer = None
        if within_s and not self._has_begun():
            timer = asyncio.get_running_loop().call_later(within_s, self._be_late)
        try:
            while not self._has_begun():
                await self._wait()
        finally:
            if timer is not None:
                timer.cancel()
        assert self.head is not None
        return self.head

    def taken(self) -> bytes:
        """What has come so far of the body; from now on it is the caller's."""
        held, self._held = self._held, []
        return held[0] if len(held) == 1 else b"".join(held)

    async def read(self, limit_bytes: int) -> bytes:
        """The whole body. Raises BrokenOff, and ValueError for more than that."""
        pieces = []
        size = 0
        while True:
            piece = self.taken()
            size += len(piece)
            if size > limit_bytes:
                raise ValueError(f"more than {limit_bytes} bytes")
            pieces.append(piece)
            if self.is_whole:
                return b"".join(pieces)
            self.resume()
            await self._wait()

    def pass_to(self, sink: ResponseSink) -> None:
        """What has come goes there now, and the rest as it comes."""
        self._sink = sink
        # Before the sink is told anything: it may have to say at once that it is full.
        self.resume()
        if self.is_whole:
            sink.finish(self.taken())
            return
        if self._held:
            sink.take(self.taken())
        if self._error is not None:
            sink.fail(self._error)

    def pause(self) -> None:
        """Take nothing from the replica until `resume`."""
        if self._carrier is not None:
            self._carrier.pause()

    def resume(self) -> None:
        """Go on."""
        if self._carrier is not None:
            self._carrier.resume()

    def write(self, data: bytes | memoryview) -> bool:
        """To the replica, after an upgrade. False: it takes nothing more for now.

        `on_room` of `ResponseSink` is called when it does again.
        """
        return self._carrier is None or self._carrier.write(data)

    def close(self) -> None:
        """The answer is not wanted any more. Idempotent."""
        self._sink = None
        carrier, self._carrier = self._carrier, None
        if carrier is not None:
            carrier.abort()

    # -- told by the connection ------------------------------------------------------------

    def deliver(self, pieces: list[bytes]) -> None:
        """The body goes on."""
        if self._sink is not None:
            self._sink.take(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            return
        self._held += pieces
        if sum(map(len, self._held)) > _HELD_BYTES:
            self.pause()
        self._wake()

    def complete(self, pieces: list[bytes]) -> None:
        """The answer is whole; the connection is somebody else's now."""
        self._carrier = None
        self.is_whole = True
        if self._sink is not None:
            self._sink.finish(b"".join(pieces))
            return
        self._held += pieces
        self._wake()

    def has_room(self) -> None:
        """The replica takes more."""
        if self._sink is not None:
            self._sink.on_room()

    def lost(self, error: BrokenOff) -> None:
        """The connection has ended, and the answer has not."""
        self._carrier = None
        self._error = error
        if self._sink is not None:
            self._sink.fail(error)
        self._wake()

    def _has_begun(self) -> bool:
        if self._held or self.is_whole:
            return True
        return self.head is not None and self.head.status == SWITCHING

    def _be_late(self) -> None:
        self._is_late = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        """Until something comes. Raises BrokenOff."""
        if self._error is not None:
            raise self._error
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter
        if self._is_late and not self._has_begun():
            raise TimeoutError
        if self._error is not None and not self._held:
            raise self._error
