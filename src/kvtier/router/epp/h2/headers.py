"""Header blocks (HPACK, RFC 7541) of gRPC calls.

The server allows no dynamic table, so that a block means the same whenever it arrives: gateways
send the same few blocks over and over, and each is decoded only once. Until the client has
acknowledged that setting, its blocks may refer to earlier ones and are decoded in order. A block
may contain headers that the gateway passes on from its own clients (with tracing, `tracestate`).
Once no block refers to another, one that is too long therefore fails only its own call and not the
connection.
Invariants: a cached result depends on nothing but its block; the blocks that the server sends use
no dynamic table; no more than `LIST_BYTES` of a block, and its last part, is buffered.
"""

from typing import Final, NamedTuple
from urllib.parse import quote

import hpack

from kvtier.router.epp.h2.frames import Code, H2ProtocolError

LIST_BYTES: Final = 96 * 1024
"""Maximum size of a call's decoded headers. A gateway's own take a few hundred bytes; those that it
passes on from its client may take 60 KiB with Envoy."""
_MAX_PARTS: Final = 512
"""Frames of one block: 8 MiB in frames of 16 KiB, the largest headers that Envoy can accept."""
_CACHED_BLOCKS: Final = 512
_CACHED_BLOCK_BYTES: Final = 1024
_STATUS_200: Final = b"\x88"
_STATUS: Final = b"\x08\x03"
"""A literal with the static name `:status`; three digits follow."""
_TYPE: Final = b"\x0f\x10\x10application/grpc"
"""A literal with the static name `content-type`."""
_GRPC_STATUS: Final = b"\x00\x0bgrpc-status"
_GRPC_MESSAGE: Final = b"\x00\x0cgrpc-message"
_MESSAGE_BYTES: Final = 100
"""Maximum of a percent-encoded status message, so that HPACK encodes its length in one byte."""


class HeadersTooLong(Exception):
    """A header list over the limit that leaves the connection usable."""


class CallHeaders(NamedTuple):
    """The headers of a call that the server looks at; empty where the block has none."""

    method: bytes
    path: bytes
    content_type: bytes


class HeaderCache:
    """A bounded cache of decoded blocks, shared by all connections."""

    def __init__(self) -> None:
        self._calls: dict[bytes, CallHeaders] = {}

    def get(self, block: bytes) -> CallHeaders | None:
        """Return the headers of a block, or None if it is not cached."""
        return self._calls.get(block)

    def add(self, block: bytes, call: CallHeaders) -> None:
        """Cache the headers of a block, if the block is short."""
        if len(block) > _CACHED_BLOCK_BYTES:
            return
        if len(self._calls) >= _CACHED_BLOCKS:
            self._calls.clear()
        self._calls[block] = call


class HeaderBlock:
    """A header block that arrives in several frames."""

    def __init__(self, stream: int, flags: int, part: bytes) -> None:
        """`flags` are those of the HEADERS frame."""
        self.stream = stream
        self.flags = flags
        self._content = bytearray(part)
        self._parts = 1

    def add(self, part: bytes) -> None:
        """Append the payload of a CONTINUATION. Raises H2ProtocolError if there are too many."""
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise H2ProtocolError(Code.ENHANCE_YOUR_CALM, "a header block has too many frames")
        if len(self._content) <= LIST_BYTES:
            self._content += part

    @property
    def content(self) -> bytes:
        """The whole block, or as much as shows that it is too long."""
        return bytes(self._content)


class HeaderDecoder:
    """The header decoder of one connection."""

    def __init__(self, cache: HeaderCache) -> None:
        self._cache = cache
        self._decoder = hpack.Decoder(max_header_list_size=LIST_BYTES)
        self._has_table = True

    def disable_table(self) -> None:
        """Drop the dynamic table: the client has acknowledged that it may use none."""
        if self._has_table:
            self._has_table = False
            self._decoder.header_table_size = 0  # this evicts its entries
            self._decoder.max_allowed_table_size = 0

    def read(self, block: bytes) -> CallHeaders:
        """Decode a block.

        Raises HeadersTooLong if only this call has to fail, and H2ProtocolError if the connection
        has to end.
        """
        if self._has_table:
            return self._decode(block)
        call = self._cache.get(block)
        if call is None:
            call = self._decode(block)
            self._cache.add(block, call)
        return call

    def _decode(self, block: bytes) -> CallHeaders:
        if len(block) > LIST_BYTES:
            raise self._too_long()
        try:
            fields = dict(self._decoder.decode(block, raw=True))
        except hpack.OversizedHeaderListError as error:
            raise self._too_long() from error
        except (hpack.HPACKError, IndexError, ValueError) as error:
            raise H2ProtocolError(Code.COMPRESSION_ERROR, "a header block is malformed") from error
        method, path = fields.get(b":method", b""), fields.get(b":path", b"")
        return CallHeaders(bytes(method), bytes(path), bytes(fields.get(b"content-type", b"")))

    def _too_long(self) -> Exception:
        if self._has_table:  # later blocks may refer to what was not decoded
            return H2ProtocolError(Code.ENHANCE_YOUR_CALM, "a header list is too long")
        return HeadersTooLong()


RESPONSE: Final = _STATUS_200 + _TYPE
"""The headers before messages."""


def trailers(status: int, message: str = "") -> bytes:
    """Return the trailers after messages; `status` is a gRPC status code."""
    digits = str(status).encode()
    block = _GRPC_STATUS + bytes([len(digits)]) + digits
    text = quote(message[:_MESSAGE_BYTES], safe=" !#$&'()*+,/:;=?@[]")[:_MESSAGE_BYTES].encode()
    return block + _GRPC_MESSAGE + bytes([len(text)]) + text if text else block


def trailers_only(status: int, message: str = "") -> bytes:
    """Return the headers of a response without messages (gRPC's Trailers-Only)."""
    return RESPONSE + trailers(status, message)


def http_error(http_status: int) -> bytes:
    """Return the headers of a response to a request that is not a gRPC call."""
    return _STATUS + str(http_status).encode()


OK_TRAILERS: Final = trailers(0)
