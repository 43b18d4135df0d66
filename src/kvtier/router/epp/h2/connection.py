"""One client's connection: the socket around a session, and the checks that the client is alive.

Everything that one read causes to be sent goes out in one write. A gateway that reads an answer
together with the end of its stream knows that it can go on alone before it has sent anything that
would be lost.
Invariants: no input makes a callback raise; a client that breaks the protocol, does not read, or is
gone loses its connection, and the handlers of its calls learn of it.
"""

import asyncio
import logging
from typing import Final, cast

from kvtier.router.epp.h2 import frames
from kvtier.router.epp.h2.frames import Code, H2ProtocolError
from kvtier.router.epp.h2.session import ServerContext, Session

_log = logging.getLogger(__name__)

_WRITE_BYTES: Final = 1 << 18
"""The most that is collected before it is passed to the socket."""
ONE_READ_BYTES: Final = 16_384
"""The largest write that the client reads in one piece: with TLS it is one record, which is
decrypted only when all of it has arrived; without TLS it is what a gateway reads from its socket
at once, unless the network splits it."""
_LINGER_S: Final = 1.0
"""From the GOAWAY that reports an error to the close, so that the client can read it."""


class H2Connection(asyncio.Protocol):
    """The protocol object of one connection; implements `session.Wire`.

    Belongs to the event loop's thread.
    """

    def __init__(self, context: ServerContext, connections: "set[H2Connection]") -> None:
        """`connections` contains this connection while it is open."""
        self._context = context
        self._connections = connections
        self._limits = context.limits
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._reader = frames.FrameReader(context.limits.max_frame_bytes)
        self._out: list[bytes | memoryview] = []
        self._out_bytes = 0
        self._is_secure = False
        self._is_reading = self._is_flushing = self._is_closing = False
        self._is_paused = self._was_paused = False
        self._is_heard = self._is_asked = False
        self._session = Session(context, self)

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Announce the server's settings, or close at once if the server is stopping."""
        # uvloop's transports do not inherit from asyncio.Transport.
        self._transport = cast(asyncio.Transport, transport)
        self._is_secure = transport.get_extra_info("sslcontext") is not None
        self._transport.set_write_buffer_limits(high=_WRITE_BYTES)
        self._connections.add(self)
        self._session.begin()
        if self._context.is_stopping:
            self.end()
            return
        self.flush()
        self._timer = self._loop.call_later(self._limits.begin_s, self._check_begun)

    def data_received(self, data: bytes) -> None:
        """Handle the frames in `data` and send the answers to them."""
        if self._is_closing:
            return
        self._is_heard = self._is_reading = True
        take = self._session.take
        try:
            for frame in self._reader.feed(data):
                take(frame)
        except H2ProtocolError as broken:
            self._context.on_broken()
            self._break(broken.code, str(broken))
        except Exception:
            _log.exception("internal error on an HTTP/2 connection")
            self._break(Code.INTERNAL_ERROR, "internal server error")
        self._is_reading = False
        self.flush()

    def pause_writing(self) -> None:
        """Stop reading: a client that does not read its answers may ask for no more."""
        self._is_paused = self._was_paused = True
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Read again, and send what was waiting."""
        self._is_paused = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
            self._session.pump()
            self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel every call: the connection is gone."""
        self._is_closing = True
        self._transport = None
        self._connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self._session.cancel_streams()
        self._out.clear()

    # Called by the session.

    def write(self, data: bytes | memoryview) -> None:
        """Buffer `data` for the next flush, and schedule one if none is coming."""
        self._out.append(data)
        self._out_bytes += len(data)
        if not self._is_reading and not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self.flush)

    def can_write(self) -> bool:
        """Return True if the socket takes more data now."""
        if self._out_bytes >= _WRITE_BYTES:
            self.flush()
        return not self._is_paused

    def fits_one_write(self, size: int) -> bool:
        """Return True if the client will read the next `size` bytes in one piece."""
        if self._transport is None or size > ONE_READ_BYTES or not self.can_write():
            return False
        if self._is_secure and self._out_bytes + size > ONE_READ_BYTES:
            self.flush()  # the next write begins a new TLS record
        return self._transport.get_write_buffer_size() == 0

    def close_soon(self) -> None:
        """Close the connection once everything has been sent."""
        self._loop.call_soon(self._close)

    def flush(self) -> None:
        """Pass the buffered data to the socket in one write."""
        self._is_flushing = False
        if not self._out:
            return
        data = b"".join(self._out)
        self._out.clear()
        self._out_bytes = 0
        if self._transport is not None:
            self._transport.write(data)

    # Called by the listener.

    def shut_down(self) -> None:
        """Ask the client to stop using the connection, and close it when its streams have ended."""
        if self._is_closing:
            return
        if not self._session.has_begun:
            self._close()
            return
        self._session.shut_down()
        self.flush()

    def end(self) -> None:
        """Abort every stream with UNAVAILABLE, then close once that has been sent."""
        if not self._is_closing:
            self._session.abort_streams("the server has stopped")
            self._close()

    def abort(self) -> None:
        """Close at once, without sending anything."""
        if self._transport is not None:
            self._transport.abort()

    # Checks and closing.

    def _check_begun(self) -> None:
        if not self._session.has_begun:
            self.abort()
            return
        self._timer = self._loop.call_later(self._limits.check_s, self._check)

    def _check(self) -> None:
        """Ping a silent client; close if it stayed silent or does not read."""
        if (self._is_asked and not self._is_heard) or (self._is_paused and not self._was_paused):
            self.abort()
            return
        self._is_asked = not self._is_heard
        self._is_heard = self._was_paused = False
        self._session.check()
        if self._is_asked:
            self._session.ping()
        self._timer = self._loop.call_later(self._limits.check_s, self._check)

    def _break(self, code: Code, message: str) -> None:
        """Send GOAWAY with the reason, ignore further input, and close a little later."""
        _log.info("closing an HTTP/2 connection: %s", message)
        self._is_closing = True
        self._session.end(code, message)
        self.flush()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(_LINGER_S, self.abort)

    def _close(self) -> None:
        self.flush()
        self._is_closing = True
        if self._transport is not None:
            self._transport.close()
