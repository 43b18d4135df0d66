"""A connection to a replica that is fed by hand, with responses split in various ways."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.router.replica.connection import QUIET_BYTES, ExpectedResponse, ReplicaConnection
from kvtier.router.replica.exchange import SWITCHING, BrokenOff, ReplicaExchange


class Transport(asyncio.Transport):
    """A transport that records its calls. Unlike a real one, it reports its end at once."""

    def __init__(self, protocol: ReplicaConnection) -> None:
        super().__init__()
        self.written = b""
        self.is_over = False
        self.unsent_bytes = 0
        self._protocol = protocol

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def is_closing(self) -> bool:
        return self.is_over

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        if not self.is_over:
            self.is_over = True
            self._protocol.connection_lost(None)


class Stand:
    def __init__(
        self, expected: ExpectedResponse = ExpectedResponse.BODY, body: bytes | None = None
    ) -> None:
        self.idle: list[ReplicaConnection] = []
        self.gone: list[ReplicaConnection] = []
        self.connection = ReplicaConnection(self.idle.append, self.gone.append)
        self.transport = Transport(self.connection)
        self.connection.connection_made(self.transport)
        self.exchange = self.connection.send(b"POST / HTTP/1.1\r\n\r\n", body, expected)

    def hear(self, *pieces: bytes) -> "Stand":
        for piece in pieces:
            if not self.transport.is_over:
                self.connection.data_received(piece)
        return self

    def end(self) -> "Stand":
        self.transport.abort()
        return self

    def outcome(self) -> tuple[object, ...]:
        """Return what a reader sees: status, fields, body, completeness, and reuse."""
        return (*seen(self.exchange), bool(self.idle), self.transport.is_over)


def seen(exchange: ReplicaExchange) -> tuple[object, ...]:
    head = exchange.head
    told = None if head is None else (head.status, head.reason, tuple(head.fields), head.length)
    return told, exchange.taken(), exchange.is_whole


SIZED = b"HTTP/1.1 200 Fine\r\nContent-Length: 5\r\nX-A: \xe4\r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n6;remark=1\r\n world\r\n0\r\nX-Trailer: a\r\n\r\n"
)
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n"
CLOSING = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello"
ENDLESS = b"HTTP/1.1 200 OK\r\n\r\nhello"
EMPTY = b"HTTP/1.1 204 No Content\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "body", "is_used_again"),
    [
        (SIZED, b"hello", True),
        (CHUNKED, b"hello world", True),
        (INTERIM + SIZED, b"hello", True),
        (CLOSING, b"hello", False),
        (EMPTY, b"", True),
    ],
)
def test_complete_responses(answer: bytes, body: bytes, is_used_again: bool) -> None:
    stand = Stand().hear(answer)
    _, taken, is_whole, is_idle, is_over = stand.outcome()
    assert (taken, is_whole, is_idle, is_over) == (body, True, is_used_again, not is_used_again)


@given(
    answer=st.sampled_from(
        [SIZED, CHUNKED, INTERIM + CHUNKED, CLOSING, ENDLESS, EMPTY, b"junk\r\n"]
    ),
    cuts=st.lists(st.integers(0, 200), max_size=12),
    ends=st.booleans(),
)
def test_response_reads_alike_however_it_is_split(
    answer: bytes, cuts: list[int], ends: bool
) -> None:
    places = sorted({cut for cut in cuts if 0 < cut < len(answer)})
    pieces = [answer[a:b] for a, b in zip([0, *places], [*places, len(answer)], strict=True)]
    one, other = Stand().hear(answer), Stand().hear(*pieces)
    if ends:
        one.end()
        other.end()
    assert one.outcome() == other.outcome()


def test_end_of_connection_completes_only_response_without_length() -> None:
    assert Stand().hear(ENDLESS).end().exchange.is_whole
    for broken in (SIZED[:-1], CHUNKED[:-5], CHUNKED[:70], SIZED[:20], b""):
        stand = Stand().hear(broken).end()
        assert not stand.exchange.is_whole
        assert stand.gone == [stand.connection]
        with pytest.raises(BrokenOff):
            asyncio.run(stand.exchange.read(100))


def test_connection_is_not_reused_after_head_request() -> None:
    stand = Stand(ExpectedResponse.NOTHING).hear(SIZED.removesuffix(b"hello"))
    told, body, is_whole, is_idle, is_over = stand.outcome()
    assert told == (200, b"Fine", ((b"content-length", b"5"), (b"x-a", b"\xe4")), 5)
    assert (body, is_whole, is_idle, is_over) == (b"", True, False, True)


@pytest.mark.parametrize(
    ("expected", "status", "has_body"),
    [
        (ExpectedResponse.BODY, b"200", True),
        (ExpectedResponse.BODY, b"204", False),
        (ExpectedResponse.BODY, b"304", False),
        (ExpectedResponse.NOTHING, b"200", False),
        (ExpectedResponse.UPGRADE, b"403", True),
        (ExpectedResponse.UPGRADE, b"101", False),
    ],
)
def test_head_tells_whether_body_follows(
    expected: ExpectedResponse, status: bytes, has_body: bool
) -> None:
    stand = Stand(expected).hear(
        b"HTTP/1.1 " + status + b" \r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"
    )
    # A response that switches protocols and ends at once is complete and has no body.
    head = stand.end().exchange.head
    assert head is not None
    assert head.has_body is has_body
    assert stand.exchange.is_whole


@pytest.mark.parametrize("answer", [SIZED, CHUNKED, CLOSING, EMPTY])
@pytest.mark.parametrize("more", [SIZED, b"x", b"H", b"HTTP/1.1 2", b"\r\nHTTP/1.1 200 OK\r\nX: "])
def test_bytes_after_response_end_connection_but_not_response(answer: bytes, more: bytes) -> None:
    alone = seen(Stand().hear(answer).exchange)
    for pieces in ([answer + more], [answer[:30], answer[30:] + more], [answer, more]):
        stand = Stand().hear(*pieces)
        assert stand.transport.is_over, "the next response would be read as the rest of this one"
        assert seen(stand.exchange) == alone


def test_connection_with_unsent_request_is_not_reused() -> None:
    stand = Stand(body=b"x" * 100_000)
    stand.transport.unsent_bytes = 1
    stand.hear(SIZED)
    assert stand.exchange.is_whole
    assert stand.exchange.taken() == b"hello"
    assert not stand.idle
    assert stand.transport.is_over


@pytest.mark.parametrize(
    "endless",
    [
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * (QUIET_BYTES // 3),
        b"HTTP/1.1 200 " + b"x" * QUIET_BYTES * 2,
        CHUNKED[:-2] + b"X: y\r\n" * (QUIET_BYTES // 3),
        b"HTTP/1.1 100 Continue\r\n\r\n" * QUIET_BYTES,
    ],
)
def test_endless_head_or_trailers_fail_response(endless: bytes) -> None:
    stand = Stand()
    step = 4096
    stand.hear(*(endless[at : at + step] for at in range(0, len(endless), step)))
    assert stand.transport.is_over
    assert not stand.exchange.is_whole


def test_requested_upgrade_is_raw_in_both_directions() -> None:
    switch = b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"
    stand = Stand(ExpectedResponse.UPGRADE).hear(switch + b"\x81\x00", b"HTTP/1.1 not HTTP")
    assert stand.exchange.head is not None
    assert stand.exchange.head.status == SWITCHING
    assert stand.exchange.taken() == b"\x81\x00HTTP/1.1 not HTTP"
    assert stand.exchange.write(b"back")
    assert stand.transport.written.endswith(b"\r\n\r\nback")
    stand.connection.pause_writing()
    assert not stand.exchange.write(b"")
    assert stand.end().exchange.is_whole
    nobody = Stand().hear(switch + b"\x81\x00")
    assert nobody.transport.is_over
    assert not nobody.exchange.is_whole


@given(junk=st.binary(max_size=300), cut=st.integers(0, 300))
def test_connection_never_raises_on_any_bytes(junk: bytes, cut: int) -> None:
    for expected in ExpectedResponse:
        stand = Stand(expected).hear(b"HTTP/1.1 " + junk[:cut], junk[cut:]).end()
        assert stand.gone == [stand.connection]
