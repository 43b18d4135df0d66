"""Parsing requests without a socket: the result does not depend on how the bytes are cut."""

import asyncio
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.router.request.refusals import Refusal
from kvtier.router.route.request import (
    AHEAD_BYTES,
    FIELD_BYTES,
    FIELDS,
    QUIET_BYTES,
    HttpRequest,
    RequestReader,
)

SIZED = b"POST /v1/a?b HTTP/1.1\r\nHost: h\r\nX-A: \xe4\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"POST /v1/b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n6;remark=1\r\n world\r\n0\r\nX-Trailer: a\r\n\r\n"
)
PLAIN = b"GET /v1/c HTTP/1.1\r\nConnection: close\r\n\r\n"
OLD = b"GET http://h:1/v1/d HTTP/1.0\r\n\r\n"
OTHER = b"GET /v1/e HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n"
"""Headers that Java's client sends with every request, also with a body."""
SOCKET = b"GET /v1/f HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: WebSocket\r\n\r\n"


def read(*pieces: bytes) -> RequestReader:
    reader = RequestReader(100, lambda: None)
    for piece in pieces:
        if not reader.fault and reader.upgraded is None:
            reader.feed(piece)
        elif reader.upgraded is not None:
            reader.upgraded += piece
    return reader


def body(reader: RequestReader, place: int = 0) -> bytes | str:
    async def taken() -> bytes | bytearray:
        return await reader.requests[place].body(0.01)

    try:
        return bytes(asyncio.run(taken()))
    except Refusal as refusal:
        return f"{refusal.status} {refusal}"


def offering(message: bytes, offer: bytes = OFFER) -> bytes:
    """Return the message with an offer to upgrade."""
    return message.replace(b"\r\n", b"\r\n" + offer, 1)


def seen(reader: RequestReader) -> tuple[object, ...]:
    """Return what a connection sees; only the reason of a fault may depend on the cuts."""
    return (
        [
            (one.method, one.target, one.fields, one.is_modern, one.keeps_alive, one.is_whole)
            for one in reader.requests
        ],
        [body(reader, place) for place, one in enumerate(reader.requests) if one.is_whole],
        bool(reader.fault),
        reader.upgraded,
    )


def test_reader_parses_requests_with_bodies() -> None:
    reader = read(SIZED + CHUNKED + OTHER + PLAIN)
    assert not reader.fault
    found = [(one.method, one.target, one.keeps_alive) for one in reader.requests]
    assert found == [
        ("POST", "/v1/a?b", True),
        ("POST", "/v1/b", True),
        ("GET", "/v1/e", True),
        ("GET", "/v1/c", False),
    ]
    assert reader.requests[0].fields == [
        *((b"host", b"h"), (b"x-a", b"\xe4"), (b"content-length", b"5"))
    ]
    assert [body(reader, place) for place in range(4)] == [b"hello", b"hello world", b"", b""]
    (old,) = read(OLD).requests
    assert (old.target, old.path, old.is_modern, old.keeps_alive) == (
        *("/v1/d", "/v1/d", False, False),
    )


TO_SOCKET = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
SMUGGLING = b"POST /v1/g HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(SIZED), SIZED)
WHOLE = [SIZED, CHUNKED, SMUGGLING]
OFFERING = [
    *map(offering, WHOLE),
    offering(SIZED, TO_SOCKET),
    offering(SIZED.replace(b"POST", b"GET"), TO_SOCKET),
    offering(b"POST /v1/h HTTP/1.1\r\n\r\n", TO_SOCKET),
]
NO_REQUESTS = [b"GET /x HTTP/1.1\r\n", b"junk", b"5\r\n", SIZED.replace(b"5", b"200")]
LAST = [
    *(PLAIN, offering(PLAIN), OLD, offering(OLD), SOCKET + b"\x81\x00 upgraded", b""),
    *(offering(SIZED.replace(b"1.1", b"1.0"), TO_SOCKET), b"CONNECT h:1 HTTP/1.1\r\n\r\n" + SIZED),
]


def cut(sent: bytes, places: list[int]) -> list[bytes]:
    inside = sorted({place for place in places if 0 < place < len(sent)})
    return [sent[a:b] for a, b in zip([0, *inside], [*inside, len(sent)], strict=True)]


@given(
    messages=st.lists(
        st.sampled_from([*WHOLE, OTHER, *OFFERING, *NO_REQUESTS]), min_size=1, max_size=4
    ),
    last=st.sampled_from(LAST),
    cuts=st.lists(st.integers(0, 900), max_size=20),
)
def test_reader_result_does_not_depend_on_how_bytes_are_cut(
    messages: list[bytes], last: bytes, cuts: list[int]
) -> None:
    sent = b"".join(messages) + last
    assert seen(read(sent)) == seen(read(*cut(sent, cuts)))


@pytest.mark.parametrize("message", OFFERING)
@pytest.mark.parametrize("last", LAST)
def test_declined_upgrade_with_body_parses_alike_at_every_cut(message: bytes, last: bytes) -> None:
    sent = message + last
    whole = seen(read(sent))
    assert whole == seen(read(*(sent[at : at + 1] for at in range(len(sent)))))
    for at in range(len(sent)):
        assert whole == seen(read(sent[:at], sent[at:]))


def plainly(request: HttpRequest) -> tuple[object, ...]:
    """Return everything of a request except the offer."""
    offered = {name.lower() for name, _ in (line.split(b": ") for line in OFFER.splitlines())}
    fields = [field for field in request.fields if field[0] not in offered]
    return request.method, request.target, fields, request.is_modern, request.keeps_alive


@given(
    pieces=st.lists(
        st.one_of(st.sampled_from([*WHOLE, *NO_REQUESTS]), st.binary(max_size=50)), max_size=4
    ),
    framing=st.sampled_from(
        [
            b"",
            b"Content-Length: 0\r\n",
            b"Content-Length: 00150\r\n",
            b"Content-Length: 5, 5\r\n",
            b"Content-Length: 5\r\nConnection: close\r\n",
            b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Transfer-Encoding: gzip, chunked\r\n",
            b"Transfer-Encoding: identity\r\n",
        ]
    ),
    line=st.sampled_from([b"POST /v1/i HTTP/1.1\r\n", b"GET /v1/i HTTP/1.1\r\n"]),
)
def test_declined_upgrade_parses_as_plain_request(
    pieces: list[bytes], framing: bytes, line: bytes
) -> None:
    head = line + framing + b"\r\n"
    with_offer, without = (read(first, *pieces) for first in (offering(head), head))
    assert [*map(plainly, with_offer.requests)] == [*map(plainly, without.requests)]
    assert seen(with_offer)[1:] == seen(without)[1:]


@given(st.lists(st.binary(max_size=100), max_size=5))
def test_reader_raises_nothing_for_arbitrary_bytes(pieces: list[bytes]) -> None:
    plain = read(*pieces)
    assert len(seen(plain)[0]) == len(plain.requests)  # type: ignore[arg-type]
    head = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    for begun in (head, offering(head)):
        chunked = read(begun, *pieces)
        assert seen(chunked)[0], "the head is valid, whatever follows"


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /" + b"x" * FIELD_BYTES + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * FIELD_BYTES + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * (FIELDS + 1) + b"\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * QUIET_BYTES,
        CHUNKED[:-2] + b"X: y\r\n" * QUIET_BYTES,
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * QUIET_BYTES * 2,
    ],
)
def test_endless_head_is_fault(sent: bytes) -> None:
    assert read(*(sent[at : at + 4096] for at in range(0, len(sent), 4096))).fault


@pytest.mark.parametrize(
    "broken",
    [
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\r\n c: d\r\n\r\n",
        b"GET / HTTP/1.1\r\nA : b\r\n\r\n",
        b"GET / HTTP/1.1\nA: b\n\n",
        b"GET / HTTP/1.1\r\nA: b\0c\r\n\r\n",
    ],
)
def test_ambiguous_framing_is_fault(broken: bytes) -> None:
    assert read(broken).fault
    assert read(offering(broken)).fault
    assert read(offering(broken, TO_SOCKET)).fault


def test_broken_body_raises_refusal() -> None:
    gone = read(SIZED[:-1])
    gone.close()
    assert body(gone) == "400 the body does not match its headers: the client disconnected"
    wrong = read(CHUNKED.partition(b"0\r\n")[0] + b"zz\r\n")
    assert str(body(wrong)).startswith("400 ")
    large = read(SIZED.replace(b"5", b"200"))
    assert body(large) == "413 the body is larger than 100 bytes"
    grown = read(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"65\r\n" + b"x" * 101)
    assert body(grown) == "413 the body is larger than 100 bytes"
    assert str(body(read(SIZED[:-1]))).startswith("408 ")


def test_bytes_after_upgrade_are_kept_unparsed() -> None:
    reader = read(SIZED + SOCKET + b"\x81\x00GET / HTTP/1.1\r\n", b"more")
    assert [one.asks_upgrade for one in reader.requests] == [False, True]
    assert reader.upgraded == b"\x81\x00GET / HTTP/1.1\r\nmore"
    long = b"\x81" * 2 * QUIET_BYTES
    reader = read(SOCKET + long)
    assert reader.upgraded == long
    assert reader.is_full


def test_only_get_without_body_can_upgrade() -> None:
    old = offering(OLD.replace(b"HTTP/1.0", b"HTTP/1.0\r\nConnection: keep-alive"), TO_SOCKET)
    for message in [*OFFERING, old]:
        reader = read(message + PLAIN)
        assert [one.asks_upgrade for one in reader.requests] == [False, False]
        assert reader.upgraded is None
    refused = read(SIZED + b"CONNECT h:1 HTTP/1.1\r\nContent-Length: 5\r\n\r\n" + PLAIN)
    assert len(refused.requests) == 1
    assert refused.fault == "the method CONNECT is not supported"


def taken(reader: RequestReader) -> list[HttpRequest]:
    found = []
    while reader.requests:
        found.append(reader.take())
    return found


def test_waiting_requests_are_bounded_and_rest_is_parsed_later() -> None:
    sent = b"".join(b"GET /%d HTTP/1.1\r\n\r\n" % number for number in range(10_000))
    reader = read(sent, SIZED)
    assert len(reader.requests) < 1000
    found = []
    while len(reader.requests) > 1:
        assert reader.is_full
        found.append(reader.take())
    assert reader.is_full, "more follows the last request"
    found += taken(reader)
    assert not reader.is_full
    assert not reader.fault
    assert [one.target for one in found[:-1]] == [f"/{number}" for number in range(10_000)]
    assert found[-1].is_whole
    assert len(taken(read(OTHER * 900 + PLAIN))) == 901


def test_parsed_bytes_are_released() -> None:
    sent = SIZED * 1000
    before = sys.getrefcount(sent)
    reader = read(sent)
    assert sys.getrefcount(sent) > before
    assert len(taken(reader)) == 1000
    assert sys.getrefcount(sent) == before


def test_waiting_bodies_are_bounded_in_bytes() -> None:
    size = AHEAD_BYTES // 4
    large = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
    reader = RequestReader(AHEAD_BYTES, lambda: None)
    reader.feed(large * 10)
    assert reader.is_full
    assert len(reader.requests) == 4
    assert all(one.is_whole for one in taken(reader))
    reader.feed(large)
    assert not reader.is_full


def test_reader_is_in_head_only_after_first_byte() -> None:
    last_chunk = CHUNKED.index(b"0\r\nX-Trailer")
    for whole in (SIZED, CHUNKED, CHUNKED[:last_chunk] + b"0\r\n\r\n", offering(CHUNKED)):
        for at in range(1, len(whole)):
            reader = read(whole[:at], whole[at:])
            assert not reader.is_in_head, at
            assert read(whole[:at], whole[at:] + b"G").is_in_head
    assert read(b"G").is_in_head
    assert not read(b"\0").is_in_head, "invalid bytes are not waited for"


def test_header_values_are_stripped() -> None:
    (request,) = read(b"GET / HTTP/1.1\r\nExpect: \t100-continue \t \r\nX:  \r\n\r\n").requests
    assert request.fields == [(b"expect", b"100-continue"), (b"x", b"")]
