"""The response to one request, as its reader sees it: awaited, read whole, or streamed to a sink.

Invariants: a response that breaks off is never taken for a complete one; a slow reader pauses the
replica; after `close` the sink is not called again. Belongs to the event loop's thread.
"""

import asyncio
from typing import Final, Protocol

import msgspec

from kvtier.router.request.message import Fields

SWITCHING: Final = 101
"""Switching Protocols: after this head the connection carries another protocol."""
BODILESS: Final = (SWITCHING, 204, 304)
"""Statuses whose responses have no body, whatever their header fields say."""
_HELD_BYTES: Final = 256 * 1024
"""The most body bytes buffered for a reader that is not ready; beyond, the replica is paused."""


class BrokenOff(ConnectionError):
    """The response broke off, or was not valid HTTP."""


class Head(msgspec.Struct, frozen=True):
    """The status line and header fields of a response."""

    status: int
    reason: bytes
    fields: Fields
    length: int | None
    """The body's length in bytes; None if it is chunked or ends with the connection."""
    has_body: bool = True
    """Whether a body follows. If not, `length` is that of the body a GET would have returned."""


class ResponseSink(Protocol):
    """A receiver of a response's body, piece by piece. Its methods must not raise or block."""

    def take(self, piece: bytes) -> None:
        """Receive the next bytes."""
        ...

    def finish(self, piece: bytes) -> None:
        """Receive the last bytes, which may be empty: the response is complete."""
        ...

    def fail(self, error: BrokenOff) -> None:
        """Handle a response that broke off; nothing more follows."""
        ...

    def on_room(self) -> None:
        """Handle that the replica accepts more bytes after an upgrade."""


class ReplicaTransport(Protocol):
    """What an exchange needs of the connection that carries its response."""

    def pause(self) -> None:
        """Stop reading from the replica."""
        ...

    def resume(self) -> None:
        """Read from the replica again."""
        ...

    def write(self, data: bytes | memoryview) -> bool:
        """Write `data` after an upgrade; return False if the caller should wait for room."""
        ...

    def abort(self) -> None:
        """End the connection at once, without notifying the exchange."""
        ...


class ReplicaExchange:
    """The response to one request. Its reader must call `close` at the end, also after errors."""

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
        """Wait for the first bytes of the body, or its end, and return the head.

        Raises BrokenOff, and TimeoutError if nothing arrives within `within_s` (0: no limit).
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
        """Remove and return the buffered part of the body."""
        held, self._held = self._held, []
        return held[0] if len(held) == 1 else b"".join(held)

    async def read(self, limit_bytes: int) -> bytes:
        """Return the whole body. Raises BrokenOff, and ValueError beyond `limit_bytes`."""
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
        """Stream the body to `sink`: the buffered part now, the rest as it arrives."""
        self._sink = sink
        # Resume first, because the sink may pause the replica as soon as it is called.
        self.resume()
        if self.is_whole:
            sink.finish(self.taken())
            return
        if self._held:
            sink.take(self.taken())
        if self._error is not None:
            sink.fail(self._error)

    def pause(self) -> None:
        """Stop reading from the replica until `resume`."""
        if self._carrier is not None:
            self._carrier.pause()

    def resume(self) -> None:
        """Read from the replica again."""
        if self._carrier is not None:
            self._carrier.resume()

    def write(self, data: bytes | memoryview) -> bool:
        """Write `data` to the replica after an upgrade; return False if its buffer is full.

        `ResponseSink.on_room` is called when there is room again.
        """
        return self._carrier is None or self._carrier.write(data)

    def close(self) -> None:
        """Abort a response that is still in progress. Idempotent."""
        self._sink = None
        carrier, self._carrier = self._carrier, None
        if carrier is not None:
            carrier.abort()

    # -- called by the connection ----------------------------------------------------------

    def deliver(self, pieces: list[bytes]) -> None:
        """Receive pieces of the body."""
        if self._sink is not None:
            self._sink.take(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            return
        self._held += pieces
        if sum(map(len, self._held)) > _HELD_BYTES:
            self.pause()
        self._wake()

    def complete(self, pieces: list[bytes]) -> None:
        """Receive the last pieces; the connection may carry another exchange from now on."""
        self._carrier = None
        self.is_whole = True
        if self._sink is not None:
            self._sink.finish(b"".join(pieces))
            return
        self._held += pieces
        self._wake()

    def has_room(self) -> None:
        """Tell the sink that the replica accepts more bytes."""
        if self._sink is not None:
            self._sink.on_room()

    def lost(self, error: BrokenOff) -> None:
        """Fail the exchange because the connection ended before the response did."""
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
        """Wait for the next call from the connection.

        Raises BrokenOff, and TimeoutError if `begin` timed out.
        """
        if self._error is not None:
            raise self._error
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter
        if self._is_late and not self._has_begun():
            raise TimeoutError
        if self._error is not None and not self._held:
            raise self._error
