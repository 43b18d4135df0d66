import asyncio

import pytest

from kvtier.router.replica.exchange import SWITCHING, BrokenOff, Head, ReplicaExchange


class Line:
    """A ReplicaTransport that records its calls."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.written = b""

    def pause(self) -> None:
        self.told.append("pause")

    def resume(self) -> None:
        self.told.append("resume")

    def write(self, data: bytes | memoryview) -> bool:
        self.written += data
        return False

    def abort(self) -> None:
        self.told.append("abort")


class Taker:
    def __init__(self) -> None:
        self.heard: list[object] = []

    def take(self, piece: bytes) -> None:
        self.heard.append(piece)

    def finish(self, piece: bytes) -> None:
        self.heard.append(("end", piece))

    def fail(self, error: BrokenOff) -> None:
        self.heard.append(str(error))

    def on_room(self) -> None:
        self.heard.append("room")


HEAD = Head(200, b"OK", [], None)


def begun(*pieces: bytes) -> tuple[ReplicaExchange, Line]:
    line = Line()
    exchange = ReplicaExchange(line)
    exchange.head = HEAD
    for piece in pieces:
        exchange.deliver([piece])
    return exchange, line


def test_begin_waits_for_body_except_after_upgrade() -> None:
    async def test() -> None:
        exchange, _ = begun()
        waiting = asyncio.ensure_future(exchange.begin())
        await asyncio.sleep(0)
        assert not waiting.done()
        exchange.deliver([b"x"])
        assert await waiting is HEAD
        switched, _ = begun()
        switched.head = Head(SWITCHING, b"", [], None)
        assert (await switched.begin()).status == SWITCHING

    asyncio.run(test())


def test_sink_receives_buffered_pieces_then_later_ones() -> None:
    exchange, _ = begun(b"a", b"b")
    taker = Taker()
    exchange.pass_to(taker)
    exchange.deliver([b"c", b"d"])
    exchange.complete([b"e"])
    assert taker.heard == [b"ab", b"cd", ("end", b"e")]
    assert exchange.taken() == b""


def test_sink_learns_of_end_that_came_before_it() -> None:
    whole, _ = begun()
    whole.complete([b"all"])
    taker = Taker()
    whole.pass_to(taker)
    assert taker.heard == [("end", b"all")]
    broken, _ = begun(b"x")
    broken.lost(BrokenOff("gone"))
    taker = Taker()
    broken.pass_to(taker)
    assert taker.heard == [b"x", "gone"]


def test_closed_exchange_is_silent_and_aborts_connection_once() -> None:
    exchange, line = begun(b"x")
    taker = Taker()
    exchange.taken()
    exchange.pass_to(taker)
    exchange.close()
    exchange.close()
    exchange.deliver([b"y"])
    exchange.lost(BrokenOff("z"))
    assert taker.heard == []
    assert line.told.count("abort") == 1


def test_complete_response_leaves_connection_open() -> None:
    exchange, line = begun()
    exchange.complete([b"x"])
    exchange.close()
    exchange.pause()
    assert line.told == []


def test_unread_body_pauses_replica() -> None:
    exchange, line = begun(b"x" * 300_000)
    assert line.told == ["pause"]
    exchange.pass_to(Taker())
    assert line.told == ["pause", "resume"]


def test_sink_may_pause_on_first_piece() -> None:
    class Full(Taker):
        def take(self, piece: bytes) -> None:
            exchange.pause()

    exchange, line = begun(b"x")
    exchange.pass_to(Full())
    assert line.told[-1] == "pause"


def test_read_is_bounded_and_raises_on_broken_response() -> None:
    async def test() -> None:
        exchange, _ = begun(b"12345")
        reading = asyncio.ensure_future(exchange.read(10))
        await asyncio.sleep(0)
        exchange.deliver([b"67890"])
        await asyncio.sleep(0)
        exchange.complete([])
        assert await reading == b"1234567890"
        exchange, _ = begun(b"12345678901")
        with pytest.raises(ValueError, match="more than 10 bytes"):
            await exchange.read(10)
        exchange, _ = begun(b"1")
        reading = asyncio.ensure_future(exchange.read(10))
        await asyncio.sleep(0)
        exchange.lost(BrokenOff("gone"))
        with pytest.raises(BrokenOff, match="gone"):
            await reading

    asyncio.run(test())


def test_write_to_replica_waits_for_room() -> None:
    exchange, line = begun()
    taker = Taker()
    exchange.pass_to(taker)
    assert not exchange.write(b"abc")
    assert line.written == b"abc"
    exchange.has_room()
    assert taker.heard == ["room"]
