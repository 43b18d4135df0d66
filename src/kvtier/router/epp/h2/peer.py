"""What the other side allows us: its settings, and windows as they grow.

Invariant: no value is taken that the protocol forbids, and no window grows past its end.
"""

from typing import Final

from kvtier.router.epp.h2 import frames
from kvtier.router.epp.h2.frames import Broken, Code

_MOST_SETTINGS: Final = 128
"""In one frame. There are about ten."""


class Peer:
    """Of one connection."""

    def __init__(self) -> None:
        self.frame_bytes = frames.DEFAULT_FRAME_BYTES
        self.window_bytes = frames.DEFAULT_WINDOW_BYTES
        """Of new streams."""

    def change(self, payload: bytes) -> int:
        """SETTINGS came. By how much the windows of streams that are open grow. Raises Broken."""
        before_bytes = self.window_bytes
        settings = frames.settings_of(payload)
        if len(settings) > _MOST_SETTINGS:
            raise Broken(Code.ENHANCE_YOUR_CALM, "settings without an end")
        for name, value in settings:
            if name == frames.INITIAL_WINDOW_SIZE:
                if value > frames.MOST_WINDOW_BYTES:
                    raise Broken(Code.FLOW_CONTROL_ERROR, "a window that is too large")
                self.window_bytes = value
            elif name == frames.MAX_FRAME_SIZE:
                if not frames.DEFAULT_FRAME_BYTES <= value <= frames.MOST_FRAME_BYTES:
                    raise Broken(Code.PROTOCOL_ERROR, "a frame size that may not be")
                self.frame_bytes = value
            elif name == frames.ENABLE_PUSH and value > 1:
                raise Broken(Code.PROTOCOL_ERROR, "ENABLE_PUSH is 0 or 1")
        return self.window_bytes - before_bytes


def widened(window: int, size: int) -> int:
    """Raises Broken where that is more than there may be."""
    if window + size > frames.MOST_WINDOW_BYTES:
        raise Broken(Code.FLOW_CONTROL_ERROR, "a window that grows too large")
    return window + size
