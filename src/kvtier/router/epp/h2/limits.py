"""What both ends of an HTTP/2 connection may ask of each other, and the budgets that enforce it.

`FrameBudget` exists because even a frame that carries nothing (a PING, an empty DATA, a call that
is canceled at once) has to be handled, and a peer can send millions of them. A frame that makes
the server look at every stream costs correspondingly more. Invariant: a peer that stays below
`frames_per_s` is never cut off.
"""

from typing import Final

import msgspec

from kvtier.clock import Clock
from kvtier.router.epp.h2 import frames
from kvtier.router.epp.h2.frames import Code, H2ProtocolError

_MAX_SETTINGS: Final = 128
"""Entries in one SETTINGS frame. About ten are defined."""


class H2Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of one connection."""

    max_message_bytes: int = 4 << 20
    max_streams: int = 4096
    stream_window_bytes: int = 1 << 20
    """What a client may send on a stream before its service has taken it."""
    connection_window_bytes: int = 64 << 20
    max_frame_bytes: int = 1 << 17
    frames_burst: int = 5000
    """Frames that carry nothing, and calls canceled before they were answered, at once."""
    frames_per_s: float = 500.0
    begin_s: float = 10.0
    """Timeout of the TLS handshake, and again of the preface and first frame after it."""
    close_s: float = 2.0
    """How long a TLS connection that the server closes waits for the client to close it too. Some
    gRPC clients never answer a `close_notify`."""
    check_s: float = 30.0
    """A peer that is silent for this long is pinged, and closed if it stays silent for as long."""
    unread_checks: int = 10
    """A stream that has data to send, and whose peer opens no window for this many `check_s`, is
    reset."""


class MemoryBudget:
    """The bytes that all streams together may buffer. Belongs to the event loop's thread."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.taken_bytes = 0

    def take(self, size: int) -> bool:
        """Take `size` bytes if they fit; return True if so. A negative size always fits."""
        if size > 0 and self.taken_bytes + size > self._max_bytes:
            return False
        self.taken_bytes += size
        return True

    def release(self, size: int) -> None:
        """Give `size` bytes back."""
        self.taken_bytes -= size


class FrameBudget:
    """A token bucket that frames draw from and time refills."""

    def __init__(self, limits: H2Limits, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._left = float(limits.frames_burst)
        self._at_s = clock.now_s()

    def spend(self, cost: int = 1) -> bool:
        """Draw `cost` from the budget; return False if it does not suffice."""
        if self._left < cost:
            now_s = self._clock.now_s()
            self._left += (now_s - self._at_s) * self._limits.frames_per_s
            self._left = min(self._left, self._limits.frames_burst)
            self._at_s = now_s
            if self._left < cost:
                return False
        self._left -= cost
        return True


class PeerSettings:
    """The settings that the other end of a connection has announced, as far as they matter here."""

    def __init__(self) -> None:
        self.frame_bytes = frames.DEFAULT_FRAME_BYTES
        self.window_bytes = frames.DEFAULT_WINDOW_BYTES
        """The initial send window of new streams."""

    def apply(self, payload: bytes) -> int:
        """Apply the payload of a SETTINGS frame; return the growth of the open streams' windows.

        Raises H2ProtocolError for values that the protocol forbids.
        """
        before_bytes = self.window_bytes
        settings = frames.parse_settings(payload)
        if len(settings) > _MAX_SETTINGS:
            raise H2ProtocolError(Code.ENHANCE_YOUR_CALM, "a SETTINGS frame has too many entries")
        for name, value in settings:
            if name == frames.INITIAL_WINDOW_SIZE:
                if value > frames.MAX_WINDOW_BYTES:
                    raise H2ProtocolError(
                        Code.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE is too large"
                    )
                self.window_bytes = value
            elif name == frames.MAX_FRAME_SIZE:
                if not frames.DEFAULT_FRAME_BYTES <= value <= frames.MAX_FRAME_BYTES:
                    raise H2ProtocolError(Code.PROTOCOL_ERROR, "MAX_FRAME_SIZE is out of range")
                self.frame_bytes = value
            elif name == frames.ENABLE_PUSH and value > 1:
                raise H2ProtocolError(Code.PROTOCOL_ERROR, "ENABLE_PUSH must be 0 or 1")
        return self.window_bytes - before_bytes


def grown_window(window: int, size: int) -> int:
    """Return `window + size`. Raises H2ProtocolError if that exceeds the protocol's maximum."""
    if window + size > frames.MAX_WINDOW_BYTES:
        raise H2ProtocolError(Code.FLOW_CONTROL_ERROR, "a flow-control window grows too large")
    return window + size
