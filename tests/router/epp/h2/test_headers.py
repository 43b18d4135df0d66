import contextlib

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.router.epp.h2 import headers
from kvtier.router.epp.h2.frames import Code, H2ProtocolError
from kvtier.router.epp.h2.headers import (
    CallHeaders,
    HeaderBlock,
    HeaderCache,
    HeaderDecoder,
    HeadersTooLong,
)
from tests.router.epp.h2.clients import HEADERS, block, fields_of, tracestate

CALL = CallHeaders(b"POST", b"/echo", b"application/grpc")


def without_table(known: HeaderCache | None = None) -> HeaderDecoder:
    decoder = HeaderDecoder(known or HeaderCache())
    decoder.disable_table()
    return decoder


def test_decoded_block_is_cached_for_all_connections() -> None:
    known = HeaderCache()
    assert known.get(block()) is None
    assert without_table(known).read(block()) == CALL
    assert known.get(block()) == CALL
    assert without_table(known).read(block()) == CALL


def test_header_cache_is_bounded() -> None:
    known = HeaderCache()
    for number in range(3 * headers._CACHED_BLOCKS):
        known.add(b"%d" % number, CALL)
    assert len(known._calls) <= headers._CACHED_BLOCKS
    known.add(b"x" * 2000, CALL)
    assert known.get(b"x" * 2000) is None


def test_blocks_with_dynamic_table_are_not_cached() -> None:
    encoder = hpack.Encoder()
    first, second = (encoder.encode(list(HEADERS.items())) for _ in range(2))
    assert len(second) < len(first)
    known = HeaderCache()
    decoder = HeaderDecoder(known)
    assert decoder.read(first) == decoder.read(second) == CALL
    assert known.get(first) is None
    # Afterwards the client announces a smaller table, and refers to no entries.
    decoder.disable_table()
    encoder.header_table_size = 0
    assert decoder.read(encoder.encode(list(HEADERS.items()))) == CALL
    with pytest.raises(H2ProtocolError) as broken:
        decoder.read(second)
    assert broken.value.code is Code.COMPRESSION_ERROR


def test_block_with_stale_table_reference_is_not_cached() -> None:
    known = HeaderCache()
    encoder = hpack.Encoder()
    first, second = (encoder.encode(list(HEADERS.items())) for _ in range(2))
    decoder = HeaderDecoder(known)
    decoder.read(first)
    decoder.disable_table()
    with pytest.raises(H2ProtocolError):
        decoder.read(second)
    assert known.get(second) is None


@given(st.binary(max_size=80), st.booleans())
def test_any_block_decodes_or_raises_declared_error(content: bytes, has_table: bool) -> None:
    decoder = HeaderDecoder(HeaderCache()) if has_table else without_table()
    with contextlib.suppress(H2ProtocolError, HeadersTooLong):
        assert isinstance(decoder.read(content), CallHeaders)


@pytest.mark.parametrize("is_packed", [True, False])
def test_too_long_list_is_fatal_only_with_dynamic_table(is_packed: bool) -> None:
    content = block() + tracestate(headers.LIST_BYTES, is_packed=is_packed)
    assert (len(content) < headers.LIST_BYTES) is is_packed
    with pytest.raises(H2ProtocolError) as broken:
        HeaderDecoder(HeaderCache()).read(content)
    assert broken.value.code is Code.ENHANCE_YOUR_CALM
    decoder = without_table()
    with pytest.raises(HeadersTooLong):
        decoder.read(content)
    assert decoder.read(block()) == CALL


def test_long_client_headers_are_decoded() -> None:
    for is_packed in (True, False):
        content = block() + tracestate(60 * 1024, is_packed=is_packed)
        assert without_table().read(content) == CALL


def test_continued_block_is_bounded() -> None:
    content = HeaderBlock(1, 0, b"a")
    content.add(b"b")
    assert (content.stream, content.flags, content.content) == (1, 0, b"ab")
    part = b"x" * 16_384
    for _ in range(510):
        content.add(part)
    with pytest.raises(H2ProtocolError) as broken:
        content.add(part)
    assert broken.value.code is Code.ENHANCE_YOUR_CALM
    assert headers.LIST_BYTES < len(content.content) <= headers.LIST_BYTES + len(part)


def test_response_blocks_match_grpc() -> None:
    assert fields_of(headers.RESPONSE) == {":status": "200", "content-type": "application/grpc"}
    assert fields_of(headers.OK_TRAILERS) == {"grpc-status": "0"}
    assert fields_of(headers.http_error(415)) == {":status": "415"}
    said = fields_of(headers.trailers_only(12, "no: 100 % \u00fc\n"))
    assert (said[":status"], said["grpc-status"]) == ("200", "12")
    assert said["grpc-message"] == "no: 100 %25 %C3%BC%0A"
    assert len(fields_of(headers.trailers(3, "\u00fc" * 500))["grpc-message"]) <= 100
