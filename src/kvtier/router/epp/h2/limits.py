"""How much a peer may ask of us: limits, memory that all share, and budget with idle work.

Why budget: a frame that carries nothing (a PING, an empty DATA, a call that is taken back)
still has to be handled, and a peer can send millions. One that makes us look at every stream
counts for as many as that costs. Invariant: whoever stays below `frames_per_s` is never cut off.
"""

from typing import Final

import msgspec

from kvtier.clock import Clock
from kvtier.router.epp.h2 import frames
from kvtier.router.epp.h2.frames import Code, H2ProtocolError

_MOST_SETTINGS: Final = 128
"""In one frame. There are about ten."""


class H2Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Of one connection."""

    max_message_bytes: int = 4 << 20
    max_streams: int = 4096
    stream_window_bytes: int = 1 << 20
    """What a client may send on a stream before it is taken from there."""
    connection_window_bytes: int = 64 << 20
    max_frame_bytes: int = 1 << 17
    frames_burst: int = 5000
    """Frames that carry nothing, and calls taken back before they were answered."""
    frames_per_s: float = 500.0
    begin_s: float = 10.0
    """For the TLS handshake, and then for the preface."""
    close_s: float = 2.0
    """How long a TLS connection that we close waits for the client to close it too. Some gRPC
    clients never answer a `close_notify`."""
    check_s: float = 30.0
    """A peer that is silent for so long is asked whether it lives, and then has as long."""
    unread_checks: int = 10
    """A stream of which nothing could be sent for so many `check_s` is cut: it has something to
    send, and a peer that is there gives it no window."""


class Allowance:
    """Bytes that all streams together may keep. Belongs to the event loop's thread."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.taken_bytes = 0

    def take(self, size: int) -> bool:
        """Whether there is room; then it is taken. What gets smaller always has."""
        if size > 0 and self.taken_bytes + size > self._max_bytes:
            return False
        self.taken_bytes += size
        return True

    def give(self, size: int) -> None:
        """Back."""
        self.taken_bytes -= size


class FrameBudget:
    """Wears out with what frames cost, and comes back with time."""

    def __init__(self, limits: H2Limits, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._left = float(limits.frames_burst)
        self._at_s = clock.now_s()

    def spend(self, cost: int = 1) -> bool:
        """Whether there is some left; most frames cost one."""
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
    """Of one connection."""

    def __init__(self) -> None:
        self.frame_bytes = frames.DEFAULT_FRAME_BYTES
        self.window_bytes = frames.DEFAULT_WINDOW_BYTES
        """Of new streams."""

    def change(self, payload: bytes) -> int:
        """Apply the payload of a SETTINGS frame; return the growth of the open streams' windows.

        Raises H2ProtocolError for values that the protocol forbids.
        """
        before_bytes = self.window_bytes
        settings = frames.settings_of(payload)
        if len(settings) > _MOST_SETTINGS:
            raise H2ProtocolError(Code.ENHANCE_YOUR_CALM, "settings without an end")
        for name, value in settings:
            if name == frames.INITIAL_WINDOW_SIZE:
                if value > frames.MOST_WINDOW_BYTES:
                    raise H2ProtocolError(Code.FLOW_CONTROL_ERROR, "a window that is too large")
                self.window_bytes = value
            elif name == frames.MAX_FRAME_SIZE:
                if not frames.DEFAULT_FRAME_BYTES <= value <= frames.MOST_FRAME_BYTES:
                    raise H2ProtocolError(Code.PROTOCOL_ERROR, "a frame size that may not be")
                self.frame_bytes = value
            elif name == frames.ENABLE_PUSH and value > 1:
                raise H2ProtocolError(Code.PROTOCOL_ERROR, "ENABLE_PUSH is 0 or 1")
        return self.window_bytes - before_bytes


def widened(window: int, size: int) -> int:
    """Raises H2ProtocolError where that is more than there may be."""
    if window + size > frames.MOST_WINDOW_BYTES:
        raise H2ProtocolError(Code.FLOW_CONTROL_ERROR, "a window that grows too large")
    return window + size
