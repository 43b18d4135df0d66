import asyncio
from typing import Any

import pytest

from kvtier.router.replica.exchange import BrokenOff, Head, ReplicaExchange
from kvtier.router.route.response import CutOff, OutgoingBody
from tests.router.replica.test_exchange import Line


class Paper(asyncio.WriteTransport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.text = b""
        self.is_over = False
        self.unsent_bytes = [0]
        """The values that a query for unsent bytes returns one after the other."""

    def write(self, data: Any) -> None:
        assert not self.is_over, "a closed socket raises"
        self.text += data

    def is_closing(self) -> bool:
        return self.is_over

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes.pop(0) if len(self.unsent_bytes) > 1 else self.unsent_bytes[0]


def made(
    *, is_chunked: bool, idle_s: float = 0
) -> tuple[OutgoingBody, Paper, ReplicaExchange, Line]:
    line, paper = Line(), Paper()
    exchange = ReplicaExchange(line)
    exchange.head = Head(200, b"", [], None)
    outgoing = OutgoingBody(paper, exchange, is_chunked=is_chunked, idle_s=idle_s)
    exchange.pass_to(outgoing)
    return outgoing, paper, exchange, line


@pytest.mark.parametrize(
    ("is_chunked", "last", "text"),
    [
        (True, b"c", b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"),
        (True, b"", b"2\r\nab\r\n0\r\n\r\n"),
        (False, b"c", b"abc"),
    ],
)
def test_outgoing_body_is_chunked_again_with_its_end(
    is_chunked: bool, last: bytes, text: bytes
) -> None:
    async def test() -> None:
        outgoing, paper, exchange, _ = made(is_chunked=is_chunked)
        exchange.deliver([b"a", b"b"])
        exchange.complete([last] if last else [])
        await outgoing.ended()
        assert paper.text == text

    asyncio.run(test())


def test_outgoing_body_that_breaks_off_has_no_end() -> None:
    async def test() -> None:
        outgoing, paper, exchange, _ = made(is_chunked=True)
        exchange.deliver([b"ab"])
        exchange.lost(BrokenOff("gone"))
        with pytest.raises(CutOff, match="broke off: gone"):
            await outgoing.ended()
        assert paper.text == b"2\r\nab\r\n"

    asyncio.run(test())


def test_outgoing_body_pauses_replica_for_slow_client() -> None:
    async def test() -> None:
        outgoing, _, exchange, line = made(is_chunked=True)
        outgoing.pause()
        outgoing.resume()
        assert line.told[-2:] == ["pause", "resume"]
        exchange.complete([])
        await outgoing.ended()

    asyncio.run(test())


def test_outgoing_body_is_cut_off_when_idle() -> None:
    async def test() -> None:
        outgoing, _, exchange, _ = made(is_chunked=True, idle_s=0.1)
        ended = asyncio.ensure_future(outgoing.ended())
        for _ in range(6):
            exchange.deliver([b"x"])
            await asyncio.sleep(0.04)
        assert not ended.done()
        with pytest.raises(CutOff, match=r"nothing moved for 0\.1 s"):
            await ended

    asyncio.run(test())


def test_outgoing_body_ignores_writes_after_client_disconnects() -> None:
    async def test() -> None:
        for is_chunked in (True, False):
            outgoing, paper, exchange, _ = made(is_chunked=is_chunked)
            paper.is_over = True
            exchange.deliver([b"a"])
            exchange.complete([b"b"])
            await outgoing.ended()
            assert paper.text == b""

    asyncio.run(test())


def test_outgoing_body_is_cut_off_only_if_client_stops_reading() -> None:
    async def test() -> None:
        outgoing, paper, _, _ = made(is_chunked=True, idle_s=0.01)
        paper.unsent_bytes = [100, 90, 80, 70, 60]
        outgoing.pause()
        with pytest.raises(CutOff, match=r"nothing moved for 0\.01 s"):
            await outgoing.ended()
        assert paper.unsent_bytes == [60]

    asyncio.run(test())
