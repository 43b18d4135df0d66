"""An answer on its way from a replica to a client, as it comes.

Invariants: bytes of a body are passed on as they came; the client's slowness holds the replica
back; an answer that cannot be finished is cut off, never ended as if it were whole.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from kvtier.router.replica.exchange import BrokenOff, Exchange, Sink
from kvtier.router.replica.unsent import unsent_bytes

_END: Final = b"0\r\n\r\n"


class CutOff(ConnectionError):
    """The answer has begun and cannot be finished: close the connection without its end."""


class Outgoing(Sink):
    """One answer's body. `ended` says how it went."""

    def __init__(
        self,
        transport: asyncio.WriteTransport,
        exchange: Exchange,
        *,
        is_chunked: bool,
        idle_s: float,
    ) -> None:
        """`idle_s`: without a byte passing; 0 for no limit."""
        self._transport = transport
        self._exchange = exchange
        self._is_chunked = is_chunked
        self._idle_s = idle_s
        self._loop = asyncio.get_running_loop()
        self._moved_s = self._loop.time()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._timer = self._loop.call_later(idle_s, self._look) if idle_s else None
        self._unsent_bytes = 0
        self._on_room: Callable[[], None] | None = None

    async def ended(self) -> None:
        """Until the client has been sent everything. Raises CutOff where that cannot be."""
        try:
            await self._ended
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def hold(self) -> None:
        """The client takes nothing."""
        self._unsent_bytes = unsent_bytes(self._transport)
        self._exchange.pause()

    def go_on(self) -> None:
        """It does again."""
        self._moved_s = self._loop.time()
        self._exchange.resume()

    def send_back(self, data: bytes, on_room: Callable[[], None]) -> bool:
        """From the client to the replica, after an upgrade. False: wait for `on_room`."""
        self._moved_s = self._loop.time()
        self._on_room = on_room
        return self._exchange.write(data)

    def on_room(self) -> None:
        """See Sink."""
        if self._on_room is not None:
            self._on_room()

    def take(self, piece: bytes) -> None:
        """See Sink."""
        self._moved_s = self._loop.time()
        self._write(b"%x\r\n%b\r\n" % (len(piece), piece) if self._is_chunked else piece)

    def finish(self, piece: bytes) -> None:
        """See Sink."""
        if self._is_chunked:
            last = b"%x\r\n%b\r\n%b" % (len(piece), piece, _END) if piece else _END
            self._write(last)
        elif piece:
            self._write(piece)
        if not self._ended.done():
            self._ended.set_result(None)

    def fail(self, error: BrokenOff) -> None:
        """See Sink."""
        self._break_off(f"the answer broke off: {error}")

    def _write(self, data: bytes) -> None:
        # That the client has left is told one turn of the loop later than the socket knows it.
        if not self._transport.is_closing():
            self._transport.write(data)

    def _break_off(self, why: str) -> None:
        if not self._ended.done():
            self._ended.set_exception(CutOff(why))

    def _look(self) -> None:
        """Moving a timer with every piece would cost more than writing the piece."""
        before, self._unsent_bytes = self._unsent_bytes, unsent_bytes(self._transport)
        if self._unsent_bytes < before:
            self._moved_s = self._loop.time()
        idle_s = self._loop.time() - self._moved_s
        if idle_s < self._idle_s:
            self._timer = self._loop.call_later(self._idle_s - idle_s, self._look)
        else:
            self._break_off(f"nothing moved for {self._idle_s:g} s")
