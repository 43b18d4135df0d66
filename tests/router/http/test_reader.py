"""Requests out of bytes, without a socket: however they are cut, they read alike."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.router.http.reader import FIELD_BYTES, FIELDS, QUIET_BYTES, REQUESTS, Reader
from kvtier.router.serving.refusals import Refusal

SIZED = b"POST /v1/a?b HTTP/1.1\r\nHost: h\r\nX-A: \xe4\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"POST /v1/b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n6;remark=1\r\n world\r\n0\r\nX-Trailer: a\r\n\r\n"
)
PLAIN = b"GET /v1/c HTTP/1.1\r\nConnection: close\r\n\r\n"
OLD = b"GET http://h:1/v1/d HTTP/1.0\r\n\r\n"
OTHER = b"GET /v1/e HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
SOCKET = b"GET /v1/f HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: WebSocket\r\n\r\n"


def read(*pieces: bytes) -> Reader:
    reader = Reader(100, lambda: None)
    for piece in pieces:
        if not reader.fault and reader.beyond is None:
            reader.feed(piece)
        elif reader.beyond is not None:
            reader.beyond += piece
    return reader


def body(reader: Reader, place: int = 0) -> bytes | str:
    async def taken() -> bytes | bytearray:
        return await reader.requests[place].body(0.01)

    try:
        return bytes(asyncio.run(taken()))
    except Refusal as refusal:
        return f"{refusal.status} {refusal}"


def seen(reader: Reader) -> tuple[object, ...]:
    """All that a connection sees; why something is a fault may depend on how it was cut."""
    return (
        [
            (one.method, one.target, one.fields, one.is_modern, one.keeps_alive, one.is_whole)
            for one in reader.requests
        ],
        [body(reader, place) for place, one in enumerate(reader.requests) if one.is_whole],
        bool(reader.fault),
        reader.beyond,
    )


def test_requests_and_their_bodies() -> None:
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


_MESSAGES = st.sampled_from(
    [SIZED, CHUNKED, OTHER, b"GET /x HTTP/1.1\r\n", b"junk", b"5\r\n", SIZED.replace(b"5", b"200")]
)


@given(
    messages=st.lists(_MESSAGES, min_size=1, max_size=4),
    last=st.sampled_from([PLAIN, OLD, SOCKET + b"\x81\x00 beyond", b""]),
    cuts=st.lists(st.integers(0, 600), max_size=20),
)
def test_however_requests_are_cut_they_read_alike(
    messages: list[bytes], last: bytes, cuts: list[int]
) -> None:
    sent = b"".join(messages) + last
    places = sorted({cut for cut in cuts if 0 < cut < len(sent)})
    pieces = [sent[a:b] for a, b in zip([0, *places], [*places, len(sent)], strict=True)]
    assert seen(read(sent)) == seen(read(*pieces))


@given(st.lists(st.binary(max_size=100), max_size=5))
def test_whatever_comes_nothing_is_raised(pieces: list[bytes]) -> None:
    plain = read(*pieces)
    assert len(seen(plain)[0]) == len(plain.requests)  # type: ignore[arg-type]
    chunked = read(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", *pieces)
    assert seen(chunked)[0], "its head was right, whatever came behind it"


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
def test_what_has_no_end_is_a_fault(sent: bytes) -> None:
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
def test_what_two_servers_could_read_in_two_ways_is_a_fault(broken: bytes) -> None:
    assert read(broken).fault


def test_a_body_that_breaks_off_or_is_wrong_is_heard_by_its_reader() -> None:
    gone = read(SIZED[:-1])
    gone.close()
    assert body(gone) == "400 the body is not what its headers say: it breaks off"
    wrong = read(CHUNKED.partition(b"0\r\n")[0] + b"zz\r\n")
    assert str(body(wrong)).startswith("400 ")
    large = read(SIZED.replace(b"5", b"200"))
    assert body(large) == "413 the body is larger than 100 bytes"
    grown = read(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"65\r\n" + b"x" * 101)
    assert body(grown) == "413 the body is larger than 100 bytes"
    assert str(body(read(SIZED[:-1]))).startswith("408 ")


def test_what_follows_an_upgrade_is_kept_as_it_is() -> None:
    reader = read(SIZED + SOCKET + b"\x81\x00GET / HTTP/1.1\r\n", b"more")
    assert [one.asks_upgrade for one in reader.requests] == [False, True]
    assert reader.beyond == b"\x81\x00GET / HTTP/1.1\r\nmore"
    assert len(read(OTHER * 900).requests) == 900


def test_requests_that_wait_are_bounded() -> None:
    reader = read(PLAIN.replace(b"Connection: close\r\n", b"") * (REQUESTS + 10))
    assert len(reader.requests) == REQUESTS
    assert reader.fault == "more than 1000 requests at once"
