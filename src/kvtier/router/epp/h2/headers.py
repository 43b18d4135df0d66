"""Header blocks (HPACK, RFC 7541) of gRPC calls.

We allow no dynamic table, so that a block means the same whenever it comes: gateways send the
same few over and over, and each is decoded once. Until the client has heard of it, its blocks
may lean on each other, and are decoded in their order. Some of what is in them may be a client's
of the gateway (with tracing, its `tracestate`): one that is too long costs its own call, and not
the connection, as soon as nothing else leans on it.
Invariants: what is remembered depends on nothing but the block; our own blocks touch no table;
nothing of a block is kept beyond the bound.
"""

from typing import Final, NamedTuple
from urllib.parse import quote

import hpack

from kvtier.router.epp.h2.frames import Code, H2ProtocolError

LIST_BYTES: Final = 96 * 1024
"""Of a call's headers, unpacked. Those of gateways have a few hundred, and what they pass on of a
client's: Envoy takes 60 KiB from it."""
_MOST_PARTS: Final = 512
"""Of a block: 8 MiB in frames of 16 KiB, the most that Envoy can be told to take."""
_KNOWN_BLOCKS: Final = 512
_KNOWN_BLOCK_BYTES: Final = 1024
_STATUS_200: Final = b"\x88"
_STATUS: Final = b"\x08\x03"
"""A literal of the static name `:status`, three digits follow."""
_TYPE: Final = b"\x0f\x10\x10application/grpc"
"""A literal of the static name `content-type`."""
_GRPC_STATUS: Final = b"\x00\x0bgrpc-status"
_GRPC_MESSAGE: Final = b"\x00\x0cgrpc-message"
_MESSAGE_BYTES: Final = 100
"""So that its length is one byte of HPACK, percent signs included."""


class TooLong(Exception):
    """More headers than we take; the connection is none the worse for it."""


class CallHeaders(NamedTuple):
    """What is read of a block; empty where there is none."""

    method: bytes
    path: bytes
    content_type: bytes


class HeaderCache:
    """Blocks that were decoded before, by whichever client. Bounded."""

    def __init__(self) -> None:
        self._calls: dict[bytes, CallHeaders] = {}

    def get(self, block: bytes) -> CallHeaders | None:
        """None: not seen yet, or forgotten."""
        return self._calls.get(block)

    def add(self, block: bytes, call: CallHeaders) -> None:
        """Remember it, if it is short."""
        if len(block) > _KNOWN_BLOCK_BYTES:
            return
        if len(self._calls) >= _KNOWN_BLOCKS:
            self._calls.clear()
        self._calls[block] = call


class HeaderBlock:
    """Comes in parts."""

    def __init__(self, stream: int, flags: int, part: bytes) -> None:
        """`flags` of the first frame."""
        self.stream = stream
        self.flags = flags
        self._content = bytearray(part)
        self._parts = 1

    def add(self, part: bytes) -> None:
        """The next one. Raises H2ProtocolError where they do not end."""
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise H2ProtocolError(Code.ENHANCE_YOUR_CALM, "a header block without an end")
        if len(self._content) <= LIST_BYTES:
            self._content += part

    @property
    def content(self) -> bytes:
        """All of it, or so much that it is seen to be too long."""
        return bytes(self._content)


class HeaderDecoder:
    """Of one connection."""

    def __init__(self, known: HeaderCache) -> None:
        self._known = known
        self._decoder = hpack.Decoder(max_header_list_size=LIST_BYTES)
        self._has_table = True

    def allow_no_table(self) -> None:
        """The client has confirmed that it uses none."""
        if self._has_table:
            self._has_table = False
            self._decoder.header_table_size = 0  # whatever is in it is dropped
            self._decoder.max_allowed_table_size = 0

    def read(self, block: bytes) -> CallHeaders:
        """Raises H2ProtocolError, and TooLong where it can be let be."""
        if self._has_table:
            return self._decode(block)
        call = self._known.get(block)
        if call is None:
            call = self._decode(block)
            self._known.add(block, call)
        return call

    def _decode(self, block: bytes) -> CallHeaders:
        if len(block) > LIST_BYTES:
            raise self._too_long()
        try:
            fields = dict(self._decoder.decode(block, raw=True))
        except hpack.OversizedHeaderListError as error:
            raise self._too_long() from error
        except (hpack.HPACKError, IndexError, ValueError) as error:
            raise H2ProtocolError(
                Code.COMPRESSION_ERROR, "a header block cannot be decoded"
            ) from error
        method, path = fields.get(b":method", b""), fields.get(b":path", b"")
        return CallHeaders(bytes(method), bytes(path), bytes(fields.get(b"content-type", b"")))

    def _too_long(self) -> Exception:
        if self._has_table:  # later blocks may lean on what was not read
            return H2ProtocolError(Code.ENHANCE_YOUR_CALM, "a header list that is too long")
        return TooLong()


RESPONSE: Final = _STATUS_200 + _TYPE
"""Before messages."""


def trailers(status: int, message: str = "") -> bytes:
    """After messages. `status` is gRPC's."""
    digits = str(status).encode()
    block = _GRPC_STATUS + bytes([len(digits)]) + digits
    text = quote(message[:_MESSAGE_BYTES], safe=" !#$&'()*+,/:;=?@[]")[:_MESSAGE_BYTES].encode()
    return block + _GRPC_MESSAGE + bytes([len(text)]) + text if text else block


def only_trailers(status: int, message: str = "") -> bytes:
    """Instead of messages."""
    return RESPONSE + trailers(status, message)


def refused(http_status: int) -> bytes:
    """For a request that is no call of gRPC."""
    return _STATUS + str(http_status).encode()


OK_TRAILERS: Final = trailers(0)
