"""Flow control of a client's connection, on a fake transport, so that nothing depends on timing."""

import asyncio
import socket
from typing import Any

import pytest

from kvtier.router.replica.exchange import Head, ReplicaExchange
from kvtier.router.route import connection as module
from kvtier.router.route.connection import (
    ClientConnection,
    ClientConnections,
    ConnectionLimits,
    Handler,
)
from kvtier.router.route.request import WAITING, HttpRequest
from kvtier.router.route.response import HttpResponse
from tests.router.replica.test_exchange import Line
from tests.router.route.routers import run, until

GET = b"GET /%d HTTP/1.1\r\n\r\n"
HIGH_BYTES = 1000


class Wire(asyncio.Transport):
    """A transport that keeps what is written until `take`."""

    def __init__(self, connection: ClientConnection, **extra: object) -> None:
        super().__init__(extra)
        self.connection = connection
        self.unsent = b""
        self.sent = b""
        self.ended = ""
        self._is_paused = False
        self._reads = True
        connection.connection_made(self)

    def take(self) -> None:
        """Let the client read everything, and return it."""
        self.sent += self.unsent
        self.unsent = b""
        if self._is_paused:
            self._is_paused = False
            self.connection.resume_writing()

    def write(self, data: Any) -> None:
        self.unsent += data
        if len(self.unsent) > HIGH_BYTES and not self._is_paused:
            self._is_paused = True
            self.connection.pause_writing()

    def get_write_buffer_size(self) -> int:
        return len(self.unsent)

    def is_closing(self) -> bool:
        return bool(self.ended)

    def close(self) -> None:
        self.ended = self.ended or "closed"

    def abort(self) -> None:
        if self.ended != "aborted":
            self.ended = "aborted"
            asyncio.get_running_loop().call_soon(self.connection.connection_lost, None)

    def can_write_eof(self) -> bool:
        return False

    def is_reading(self) -> bool:
        return self._reads

    def pause_reading(self) -> None:
        self._reads = False

    def resume_reading(self) -> None:
        self._reads = True


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def front(handler: Handler, **limits: Any) -> ClientConnections:
    given = {"head_timeout_s": 60.0, "keep_alive_s": 60.0, "max_body_bytes": 10_000, **limits}
    return ClientConnections(handler, ConnectionLimits(**given))


class Large:
    """A handler that answers with more than a transport holds, and records the requests."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def handle(self, connection: ClientConnection, request: HttpRequest) -> HttpResponse:
        self.asked.append(request.target)
        return HttpResponse(200, b"x" * 2 * HIGH_BYTES)


async def small(connection: ClientConnection, request: HttpRequest) -> HttpResponse:
    return HttpResponse(200, b"small")


def test_client_that_does_not_read_gets_no_more_responses() -> None:
    async def test() -> None:
        large = Large()
        at = front(large.handle)
        wire = Wire(at())
        for number in range(10):
            wire.connection.data_received(GET % number)
            await settled()
        wire.connection.data_received(b"".join(GET % number for number in range(10, 100)))
        for answered in range(1, 101):
            await settled()
            assert len(large.asked) == answered
            wire.take()
        assert large.asked == [f"/{number}" for number in range(100)]
        assert wire.sent.count(b"HTTP/1.1 200 OK") == 100
        await at.shutdown()

    run(test())


def test_client_that_does_not_read_is_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_S", 0.02)

    async def test() -> None:
        wire = Wire(front(Large().handle)())
        wire.connection.data_received(GET % 1 * 2)
        await until(lambda: wire.ended == "aborted", "the connection is aborted")

    run(test())


def test_head_that_fills_buffer_pauses_replica() -> None:
    line = Line()

    async def begin(connection: ClientConnection, request: HttpRequest) -> None:
        exchange = ReplicaExchange(line)
        exchange.head = Head(200, b"", [], None)
        exchange.deliver([b"a"])
        fields = [(b"x", b"x" * HIGH_BYTES)]
        await connection.begin(request, exchange, fields, 0).ended()

    async def test() -> None:
        at = front(begin)
        wire = Wire(at())
        wire.connection.data_received(GET % 1)
        await settled()
        assert line.told[-1] == "pause"
        wire.take()
        assert line.told[-1] == "resume"
        await at.shutdown()

    run(test())


def test_connection_is_busy_until_response_is_sent() -> None:
    async def test() -> None:
        at = front(small)
        wire = Wire(at())
        assert at.busy() == 0
        wire.connection.data_received(GET % 1)
        await settled()
        assert wire.unsent
        assert at.busy() == 1
        at.close_idle()
        assert wire.ended == "closed"
        assert at.busy() == 1
        wire.take()
        assert at.busy() == 0
        await at.shutdown()

    run(test())


def test_connection_over_tls_is_busy_until_socket_is_writable() -> None:
    async def test() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.setblocking(False)
            ours.setblocking(False)
            at = front(small)
            wire = Wire(at(), sslcontext=object(), socket=Deaf(ours))
            assert at.busy() == 0
            while True:
                try:
                    ours.send(b"x" * 10_000)
                except BlockingIOError:
                    break
            assert at.busy() == 1
            while at.busy():
                theirs.recv(10_000)
            await at.shutdown()
            assert wire.ended == "aborted"

    run(test())


class Deaf:
    """A socket without TCP options."""

    def __init__(self, of: socket.socket) -> None:
        self.fileno = of.fileno

    def setsockopt(self, *option: object) -> None:
        pass


@pytest.mark.parametrize("sent", [GET % 1, b"no HTTP\r\n\r\n"])
def test_response_being_sent_is_not_aborted_as_idle(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINGER_S", 0.005)

    async def test() -> None:
        wire = Wire(front(small, keep_alive_s=0.005)())
        wire.connection.data_received(sent)
        await asyncio.sleep(0.05)
        assert wire.unsent
        assert not wire.ended
        wire.take()
        await until(lambda: wire.ended == "aborted", "the idle connection is aborted")

    run(test())


def test_response_that_is_never_read_is_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_S", 0.02)

    async def test() -> None:
        wire = Wire(front(small, keep_alive_s=0.005)())
        wire.connection.data_received(GET % 1)
        await until(lambda: wire.ended == "aborted", "the connection is aborted")
        assert wire.unsent

    run(test())


def test_reading_pauses_while_many_requests_wait() -> None:
    async def test() -> None:
        turn = asyncio.Event()

        async def in_turn(connection: ClientConnection, request: HttpRequest) -> HttpResponse:
            await turn.wait()
            turn.clear()
            return HttpResponse(200, b"")

        at = front(in_turn)
        wire = Wire(at())
        for number in range(WAITING + 1):
            wire.connection.data_received(GET % number)
            assert wire.is_reading() is (number < WAITING), number
        turn.set()
        await settled()
        assert wire.is_reading()
        wire.connection.data_received(b"".join(GET % number for number in range(5000)))
        answered = 0
        while not wire.is_reading():
            turn.set()
            await settled()
            wire.take()
            answered = wire.sent.count(b"HTTP/1.1 200")
        assert answered > 5000
        await at.shutdown()

    run(test())


def test_closing_waits_for_head_that_has_begun() -> None:
    async def test() -> None:
        at = front(small)
        idle, begun = Wire(at()), Wire(at())
        begun.connection.data_received(b"GET / HTTP/1.1\r\n")
        at.close_idle()
        assert (idle.ended, begun.ended) == ("closed", "")
        assert at.busy() == 1
        begun.connection.data_received(b"\r\n")
        await settled()
        assert b"connection: close\r\n" in begun.unsent
        assert begun.ended == "closed"
        await at.shutdown()

    run(test())


def test_closing_answers_waiting_request_first() -> None:
    async def test() -> None:
        at = front(Large().handle)
        wire = Wire(at())
        wire.connection.data_received(GET % 1 * 2)
        await settled()
        at.close_idle()
        assert not wire.ended
        for _ in range(2):
            wire.take()
            await settled()
        assert wire.sent.count(b"HTTP/1.1 200 OK") == 2
        assert wire.sent.count(b"connection: close\r\n") == 1
        assert wire.ended == "closed"
        await at.shutdown()

    run(test())


def test_connection_made_while_closing_is_aborted() -> None:
    async def test() -> None:
        large = Large()
        at = front(large.handle)
        await at.shutdown()
        wire = Wire(at())
        wire.connection.data_received(GET % 1)
        await settled()
        assert wire.ended == "aborted"
        assert not large.asked
        assert not at.connections

    run(test())
