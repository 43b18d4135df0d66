"""HTTP/2 frames (RFC 9113, section 4): parsing and encoding.

Invariants: only complete frames are returned; a frame over the limit is refused as soon as its
header has arrived, before any of its payload is buffered.
"""

import enum
import struct
from collections.abc import Iterator, Mapping
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
HAS_PRIORITY: Final = 0x20

HEADER_TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6

DEFAULT_WINDOW_BYTES: Final = 65_535
DEFAULT_FRAME_BYTES: Final = 16_384
MAX_FRAME_BYTES: Final = (1 << 24) - 1
MAX_WINDOW_BYTES: Final = (1 << 31) - 1
MAX_STREAM: Final = (1 << 31) - 1
PING_BYTES: Final = 8

HEAD_BYTES: Final = 9
_HEAD: Final = struct.Struct(">HBBBI")
_NUMBER: Final = struct.Struct(">I")
_SETTING: Final = struct.Struct(">HI")
_PRIORITY_BYTES: Final = 5

Frame = tuple[int, int, int, bytes]
"""The type, flags, stream and payload of a frame."""


class Code(enum.IntEnum):
    """The error codes of RST_STREAM and GOAWAY that this server sends."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class H2ProtocolError(Exception):
    """A connection error: the peer violated the protocol or a limit, and is sent `code`."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


class FrameReader:
    """A parser of what a client sends: the preface, then frames."""

    def __init__(self, max_frame_bytes: int) -> None:
        """`max_frame_bytes` is the maximum of a payload, as announced to the client."""
        self._max_frame_bytes = max_frame_bytes
        self._left = bytearray()
        self.has_begun = False
        """True once the whole preface has arrived."""

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that are complete now; the caller must exhaust the iterator.

        Raises H2ProtocolError at an invalid frame, after the valid frames before it.
        """
        whole: bytes | bytearray = data
        if self._left:
            self._left += data
            whole = self._left
        at = 0
        if not self.has_begun:
            at = self._begin(whole)
        end = len(whole)
        while self.has_begun and end - at >= _HEAD.size:
            high, low, kind, flags, number = _HEAD.unpack_from(whole, at)
            stop = at + _HEAD.size + (high << 8 | low)
            if stop - at - _HEAD.size > self._max_frame_bytes:
                raise H2ProtocolError(
                    Code.FRAME_SIZE_ERROR, "a frame is larger than MAX_FRAME_SIZE"
                )
            if stop > end:
                break
            payload = bytes(whole[at + _HEAD.size : stop])
            at = stop
            yield kind, flags, number & MAX_STREAM, payload
        if whole is self._left:
            del self._left[:at]
        else:
            self._left = bytearray(whole[at:])

    def _begin(self, data: bytes | bytearray) -> int:
        """Check the preface; return how many bytes of it were consumed."""
        if bytes(data[: len(PREFACE)]) != PREFACE[: len(data)]:
            raise H2ProtocolError(Code.PROTOCOL_ERROR, "the client does not speak HTTP/2")
        if len(data) < len(PREFACE):
            return 0
        self.has_begun = True
        return len(PREFACE)


def content(flags: int, payload: bytes) -> bytes:
    """Return the payload of a DATA or HEADERS frame without its padding and priority.

    Raises H2ProtocolError if the payload is shorter than those.
    """
    start, stop = 0, len(payload)
    if flags & PADDED:
        if not payload:
            raise H2ProtocolError(Code.FRAME_SIZE_ERROR, "a padded frame has no pad length")
        start, stop = 1, stop - payload[0]
    if flags & HAS_PRIORITY:
        start += _PRIORITY_BYTES
    if start > stop:
        raise H2ProtocolError(
            Code.PROTOCOL_ERROR, "a frame is shorter than its padding and priority"
        )
    return payload[start:stop]


def number(payload: bytes) -> int:
    """Return the number in a RST_STREAM or WINDOW_UPDATE. Raises H2ProtocolError."""
    if len(payload) != _NUMBER.size:
        raise H2ProtocolError(Code.FRAME_SIZE_ERROR, "RST_STREAM or WINDOW_UPDATE of a wrong size")
    found: int = _NUMBER.unpack(payload)[0]
    return found


def parse_settings(payload: bytes) -> list[tuple[int, int]]:
    """Return the identifiers and values in a SETTINGS frame. Raises H2ProtocolError."""
    if len(payload) % _SETTING.size:
        raise H2ProtocolError(Code.FRAME_SIZE_ERROR, "SETTINGS of a wrong size")
    return list(_SETTING.iter_unpack(payload))


def head(kind: int, flags: int, stream: int, size: int) -> bytes:
    """Return the header of a frame with a payload of `size` bytes."""
    return _HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a complete frame."""
    return head(kind, flags, stream, len(payload)) + payload


def settings(values: Mapping[int, int]) -> bytes:
    """Return a SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*pair) for pair in values.items()))


def window_update(stream: int, size: int) -> bytes:
    """Return a WINDOW_UPDATE of a stream, or of the connection if `stream` is 0."""
    return frame(WINDOW_UPDATE, 0, stream, _NUMBER.pack(size))


def reset(stream: int, code: Code) -> bytes:
    """Return a RST_STREAM, which ends a stream at once."""
    return frame(RST_STREAM, 0, stream, _NUMBER.pack(code))


def goaway(last_stream: int, code: Code, message: str = "") -> bytes:
    """Return a GOAWAY; streams above `last_stream` are not answered."""
    numbers = _NUMBER.pack(last_stream) + _NUMBER.pack(code)
    return frame(GOAWAY, 0, 0, numbers + message.encode())
