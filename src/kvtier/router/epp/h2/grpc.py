"""gRPC's own framing inside a stream: messages behind their length, and how a call ends.

Invariant: no message, whole or not, is kept beyond the bound; one that says it will be longer is
refused by its head.
"""

import enum
import struct
from typing import Final

PREFIX_BYTES: Final = 5
_HEAD: Final = struct.Struct(">BI")


class GrpcStatus(enum.IntEnum):
    """Of those that there are, what we answer."""

    OK = 0
    INVALID_ARGUMENT = 3
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class Unreadable(Exception):
    """The call ends with this status."""

    def __init__(self, status: GrpcStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


def prefix(size: int) -> bytes:
    """What goes before a message of this many bytes."""
    return _HEAD.pack(0, size)


class Assembler:
    """Messages out of the data of one stream."""

    __slots__ = ("_max_bytes", "_part")

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes`: of one message."""
        self._max_bytes = max_bytes
        self._part = bytearray()

    @property
    def part_bytes(self) -> int:
        """Of a message that is not whole."""
        return len(self._part)

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are whole now. Raises Unreadable."""
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
        """What has come is of no use any more."""
        self._part.clear()

    def _size(self, data: bytes | bytearray, at: int) -> int:
        is_compressed, size = _HEAD.unpack_from(data, at)
        if is_compressed:
            raise Unreadable(GrpcStatus.UNIMPLEMENTED, "compressed messages are not understood")
        if size > self._max_bytes:
            raise Unreadable(
                GrpcStatus.RESOURCE_EXHAUSTED, f"messages end at {self._max_bytes} bytes"
            )
        return int(size)
