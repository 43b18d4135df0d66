"""gRPC's framing inside an HTTP/2 stream: length-prefixed messages, and status codes.

Invariant: no more than the maximum of a message is ever buffered; a message that announces a
larger size is refused as soon as its prefix has arrived.
"""

import enum
import struct
from typing import Final

PREFIX_BYTES: Final = 5
_HEAD: Final = struct.Struct(">BI")


class GrpcStatus(enum.IntEnum):
    """The gRPC status codes that this server sends."""

    OK = 0
    INVALID_ARGUMENT = 3
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class InvalidMessage(Exception):
    """A message that cannot be read; its call ends with `status`."""

    def __init__(self, status: GrpcStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


def prefix(size: int) -> bytes:
    """Return the prefix of an uncompressed message of `size` bytes."""
    return _HEAD.pack(0, size)


class Assembler:
    """A parser that extracts the messages from the data of one stream."""

    __slots__ = ("_max_bytes", "_part")

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes` is the maximum size of one message."""
        self._max_bytes = max_bytes
        self._part = bytearray()

    @property
    def part_bytes(self) -> int:
        """The buffered size of the message that is still incomplete."""
        return len(self._part)

    def feed(self, data: bytes) -> list[bytes]:
        """Return the messages that are complete now. Raises InvalidMessage."""
        if not self._part and len(data) >= _HEAD.size:
            size = self._size(data, 0)
            if size + _HEAD.size == len(data):
                return [data[_HEAD.size :]]
        self._part += data
        found = []
        at = 0
        while len(self._part) - at >= _HEAD.size:
            stop = at + _HEAD.size + self._size(self._part, at)
            if stop > len(self._part):
                break
            found.append(bytes(self._part[at + _HEAD.size : stop]))
            at = stop
        del self._part[:at]
        return found

    def clear(self) -> None:
        """Discard the incomplete message."""
        self._part.clear()

    def _size(self, data: bytes | bytearray, at: int) -> int:
        is_compressed, size = _HEAD.unpack_from(data, at)
        if is_compressed:
            raise InvalidMessage(GrpcStatus.UNIMPLEMENTED, "compressed messages are not supported")
        if size > self._max_bytes:
            raise InvalidMessage(
                GrpcStatus.RESOURCE_EXHAUSTED, f"messages end at {self._max_bytes} bytes"
            )
        return int(size)
