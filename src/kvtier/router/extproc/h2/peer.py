"""What the other side allows us: its settings, and what they do to streams that are open.

Invariant: no value is taken that the protocol forbids, and no window grows past its end.
"""

from collections.abc import Iterable

from kvtier.router.extproc.h2 import frames
from kvtier.router.extproc.h2.frames import Broken, Code
from kvtier.router.extproc.h2.stream import Stream


class Peer:
    """Of one connection."""

    def __init__(self) -> None:
        self.frame_bytes = frames.DEFAULT_FRAME_BYTES
        self.window_bytes = frames.DEFAULT_WINDOW_BYTES
        """Of new streams."""

    def change(self, payload: bytes, streams: Iterable[Stream]) -> None:
        """SETTINGS came. Raises Broken."""
        for name, value in frames.settings_of(payload):
            if name == frames.INITIAL_WINDOW_SIZE:
                if value > frames.MOST_WINDOW_BYTES:
                    raise Broken(Code.FLOW_CONTROL_ERROR, "a window that is too large")
                for stream in streams:
                    stream.send_window = widened(stream.send_window, value - self.window_bytes)
                self.window_bytes = value
            elif name == frames.MAX_FRAME_SIZE:
                if not frames.DEFAULT_FRAME_BYTES <= value <= frames.MOST_FRAME_BYTES:
                    raise Broken(Code.PROTOCOL_ERROR, "a frame size that may not be")
                self.frame_bytes = value
            elif name == frames.ENABLE_PUSH and value > 1:
                raise Broken(Code.PROTOCOL_ERROR, "ENABLE_PUSH is 0 or 1")


def widened(window: int, size: int) -> int:
    """Raises Broken where that is more than there may be."""
    if window + size > frames.MOST_WINDOW_BYTES:
        raise Broken(Code.FLOW_CONTROL_ERROR, "a window that grows too large")
    return window + size
