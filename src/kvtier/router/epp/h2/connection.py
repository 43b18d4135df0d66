"""One client's connection: the bytes around a session, and whether the client is still there.

Why all that one read asks for goes out in one write: a gateway that reads an answer together with
the end of its stream knows that it can go on alone before it has sent anything that would be lost.
Invariants: whatever bytes come, nothing is raised out of here; a client that breaks the protocol,
that does not read, or that is no longer there loses its connection, and its streams are told.
"""

import asyncio
import logging
from typing import Final, cast

from kvtier.router.epp.h2 import frames
from kvtier.router.epp.h2.frames import Code, H2ProtocolError
from kvtier.router.epp.h2.session import ServerContext, Session

_log = logging.getLogger(__name__)

_WRITE_BYTES: Final = 1 << 18
"""What is collected, at most, before it is given to the socket."""
UNITED_BYTES: Final = 16_384
"""One record of TLS: nothing of it is read before all of it has come. Without TLS it is what a
gateway takes from its socket in one go, unless the network tears it apart."""
_LINGER_S: Final = 1.0
"""From the word why a connection is closed to its end, so that the client can read it."""


class H2Connection(asyncio.Protocol):
    """Meets session.Wire. Belongs to the event loop's thread."""

    def __init__(self, host: ServerContext, connections: "set[H2Connection]") -> None:
        """`connections`: it is in there as long as it lives."""
        self._host = host
        self._connections = connections
        self._limits = host.limits
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._reader = frames.FrameReader(host.limits.max_frame_bytes)
        self._out: list[bytes | memoryview] = []
        self._out_bytes = 0
        self._is_secure = False
        self._is_reading = self._is_flushing = self._is_closing = False
        self._is_paused = self._was_paused = False
        self._is_heard = self._is_asked = False
        self._session = Session(host, self)

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say what we allow."""
        # uvloop's transports are no asyncio.Transport by inheritance.
        self._transport = cast(asyncio.Transport, transport)
        self._is_secure = transport.get_extra_info("sslcontext") is not None
        self._transport.set_write_buffer_limits(high=_WRITE_BYTES)
        self._connections.add(self)
        self._session.begin()
        if self._host.is_leaving:
            self.end()
            return
        self.flush()
        self._timer = self._loop.call_later(self._limits.begin_s, self._check_begun)

    def data_received(self, data: bytes) -> None:
        """Whatever came, and the answers to it."""
        if self._is_closing:
            return
        self._is_heard = self._is_reading = True
        take = self._session.take
        try:
            for frame in self._reader.feed(data):
                take(frame)
        except H2ProtocolError as broken:
            self._host.on_broken()
            self._break(broken.code, str(broken))
        except Exception:
            _log.exception("a connection failed")
            self._break(Code.INTERNAL_ERROR, "the server failed")
        self._is_reading = False
        self.flush()

    def pause_writing(self) -> None:
        """The client does not read: neither do we, so that no more is asked of us."""
        self._is_paused = self._was_paused = True
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """It does again."""
        self._is_paused = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
            self._session.pump()
            self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing can be said any more."""
        self._is_closing = True
        self._transport = None
        self._connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self._session.lose()
        self._out.clear()

    # What the session calls.

    def write(self, data: bytes | memoryview) -> None:
        """See Wire."""
        self._out.append(data)
        self._out_bytes += len(data)
        if not self._is_reading and not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self.flush)

    def has_room(self) -> bool:
        """See Wire."""
        if self._out_bytes >= _WRITE_BYTES:
            self.flush()
        return not self._is_paused

    def can_unite(self, size: int) -> bool:
        """See Wire."""
        if self._transport is None or size > UNITED_BYTES or not self.has_room():
            return False
        if self._is_secure and self._out_bytes + size > UNITED_BYTES:
            self.flush()  # a write begins a record
        return self._transport.get_write_buffer_size() == 0

    def finish(self) -> None:
        """See Wire."""
        self._loop.call_soon(self._close)

    def flush(self) -> None:
        """Give what is collected to the socket."""
        self._is_flushing = False
        if not self._out:
            return
        data = b"".join(self._out)
        self._out.clear()
        self._out_bytes = 0
        if self._transport is not None:
            self._transport.write(data)

    # What the listener calls.

    def leave(self) -> None:
        """Ask the client to go elsewhere; the connection ends when its streams have."""
        if self._is_closing:
            return
        if not self._session.has_begun:
            self._close()
            return
        self._session.leave()
        self.flush()

    def end(self) -> None:
        """Its streams are told, and it closes when that has gone out."""
        if not self._is_closing:
            self._session.cut("the server has stopped")
            self._close()

    def abort(self) -> None:
        """End at once."""
        if self._transport is not None:
            self._transport.abort()

    # Its end.

    def _check_begun(self) -> None:
        if not self._session.has_begun:
            self.abort()
            return
        self._timer = self._loop.call_later(self._limits.check_s, self._check)

    def _check(self) -> None:
        """Whether the client is there, and reads."""
        if (self._is_asked and not self._is_heard) or (self._is_paused and not self._was_paused):
            self.abort()
            return
        self._is_asked = not self._is_heard
        self._is_heard = self._was_paused = False
        self._session.check()
        if self._is_asked:
            self._session.ask()
        self._timer = self._loop.call_later(self._limits.check_s, self._check)

    def _break(self, code: Code, message: str) -> None:
        """The client hears why; what it still sends is not read."""
        _log.info("a connection is closed: %s", message)
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
