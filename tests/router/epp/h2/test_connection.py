"""Connections under arbitrary input and timing: chunks, garbage, silence, and shutdown."""

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.router.epp.h2 import frames
from kvtier.router.epp.h2.frames import Code
from kvtier.router.epp.h2.grpc import GrpcStatus
from kvtier.router.epp.h2.limits import H2Limits
from tests.router.epp.h2.clients import (
    BEGIN,
    Client,
    answered,
    block,
    data,
    gone,
    kinds,
    message,
    opened,
    run,
)

STREAMS = st.sampled_from([1, 3, 5])
PATHS = st.sampled_from(["/echo", "/whole", "/failing", "/nobody"])
SPOKEN = st.one_of(
    st.builds(lambda stream, path: opened(stream, path=path), STREAMS, PATHS),
    st.builds(
        lambda content, stream, ends: data(message(content), stream, ends=ends),
        st.binary(max_size=40), STREAMS, st.booleans(),
    ),
    st.builds(lambda stream: frames.reset(stream, Code.CANCEL), STREAMS),
    st.builds(frames.window_update, st.sampled_from([0, 1, 3]), st.integers(0, 1 << 31)),
    st.builds(lambda size: frames.settings({frames.INITIAL_WINDOW_SIZE: size}),
              st.integers(0, 1 << 31)),
    st.builds(frames.frame, st.integers(0, 11), st.integers(0, 255), st.integers(0, 6),
              st.one_of(st.binary(max_size=40), st.just(block()))),
    st.binary(max_size=20),
)  # fmt: skip


def spoken(client: Client, parts: list[bytes]) -> list[frames.Frame]:
    found: list[frames.Frame] = []
    for part in parts:
        found += client.send(part)
    client.connection.flush()
    return found + client.take()


def ended(client: Client) -> list[Any]:
    client.end()
    assert not client.connections
    assert client.memory.taken_bytes == 0
    for handler in client.handlers:
        assert handler.said.count("closed") == 1
        assert handler.said[-1] == "closed"
    return [(handler.got, handler.said) for handler in client.handlers]


@settings(max_examples=300)
@given(st.lists(SPOKEN, max_size=12), st.data())
def test_outcome_does_not_depend_on_chunks(parts: list[bytes], draw: st.DataObject) -> None:
    content = BEGIN + b"".join(parts)
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(content)), max_size=10)))
    pieces = [
        content[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(content)], strict=True)
    ]

    def test() -> None:
        outcomes = []
        for way in ([content], pieces):
            client = Client()
            found = spoken(client, way)
            streams = {where for _, _, where, _ in found if where}
            told = {stream: answered(found, stream) for stream in streams}
            outcomes.append((told, gone(found), client.broken, ended(client)))
        assert outcomes[0] == outcomes[1]

    run(test)


@settings(max_examples=300)
@given(st.lists(st.one_of(SPOKEN, st.binary(max_size=200)), max_size=8), st.booleans())
def test_garbage_never_raises(parts: list[bytes], begins: bool) -> None:
    def test() -> None:
        client = Client()
        found = spoken(client, [BEGIN, *parts] if begins else parts)
        assert (gone(found) is not None) == bool(client.broken)
        ended(client)

    run(test)


def test_paused_client_is_not_read_and_resumes() -> None:
    async def test() -> None:
        client = Client()
        client.send(BEGIN, frames.window_update(0, 1 << 30))
        client.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 1 << 30}))
        client.connection.pause_writing()
        assert not client.socket.is_reading
        found = client.send(opened(), data(message(b"x" * 100_000), ends=True))
        assert kinds(found) == [frames.HEADERS]
        client.connection.resume_writing()
        assert client.socket.is_reading
        assert answered(client.take()) == ([b"x" * 100_000], 0)

    run(test)


def test_silent_and_unreading_clients_are_disconnected() -> None:
    limits = H2Limits(begin_s=0.01, check_s=0.01)

    async def until_closed(client: Client, says: bytes = b"") -> None:
        async with asyncio.timeout(10):
            while not client.socket.is_closed:
                if says:
                    client.connection.data_received(says)
                await asyncio.sleep(0.002)
        client.end()

    async def test() -> None:
        silent = Client(limits)
        silent.send(frames.PREFACE)
        await until_closed(silent)
        stuck = Client(limits)
        stuck.send(BEGIN)
        stuck.connection.pause_writing()
        await until_closed(stuck, frames.window_update(0, 1))
        gone_away = Client(limits)
        gone_away.send(BEGIN)
        await until_closed(gone_away)
        assert kinds(gone_away.take()) == [frames.PING]

    run(test)


def test_client_that_answers_pings_stays_connected() -> None:
    async def test() -> None:
        client = Client(H2Limits(begin_s=0.005, check_s=0.02))
        client.send(BEGIN)
        asked = 0
        async with asyncio.timeout(10):
            while asked < 3:
                for kind, _, _, payload in client.take():
                    assert kind == frames.PING
                    asked += 1
                    client.send(frames.frame(frames.PING, frames.ACK, 0, payload))
                await asyncio.sleep(0.001)
        assert not client.socket.is_closed
        client.end()

    run(test)


def test_connection_closes_soon_after_error_goaway() -> None:
    async def test() -> None:
        client = Client()
        assert gone(client.send(b"GET / HTTP/1.1\r\n\r\n")) == Code.PROTOCOL_ERROR
        assert not client.socket.is_closed
        async with asyncio.timeout(10):
            while not client.socket.is_closed:
                await asyncio.sleep(0.01)
        client.end()

    run(test)


def test_unread_answer_of_living_client_is_reset() -> None:
    async def test() -> None:
        client = Client(H2Limits(begin_s=0.005, check_s=0.005, unread_checks=1))
        client.send(BEGIN, frames.settings({frames.INITIAL_WINDOW_SIZE: 0}))
        client.send(opened(), data(message(b"x")))
        found: list[frames.Frame] = []
        async with asyncio.timeout(10):
            while frames.RST_STREAM not in kinds(found):
                found += client.send(frames.frame(frames.PING, frames.ACK, 0, b"8 bytes."))
                await asyncio.sleep(0.001)
        assert client.handlers[0].said == ["closed"]
        assert not client.socket.is_closed
        client.end()

    run(test)


def test_connection_during_stop_gets_goaway_and_is_closed() -> None:
    def test() -> None:
        client = Client(is_late=True)
        assert kinds(client.greeting) == [frames.SETTINGS, frames.WINDOW_UPDATE, frames.GOAWAY]
        assert gone(client.greeting) == Code.NO_ERROR
        assert client.socket.is_closed
        assert client.send(BEGIN, opened()) == []
        assert client.handlers == []
        client.end()

    run(test)


def test_end_aborts_every_stream() -> None:
    def test() -> None:
        client = Client()
        client.send(BEGIN, frames.settings({frames.INITIAL_WINDOW_SIZE: 0}))
        client.send(opened(), data(message(b"x")), opened(3))
        client.connection.end()
        found = client.take()
        assert kinds(found) == [frames.RST_STREAM, frames.HEADERS, frames.RST_STREAM, frames.GOAWAY]
        assert answered(found, 3) == ([], GrpcStatus.UNAVAILABLE)
        assert [handler.said for handler in client.handlers] == [["closed"], ["closed"]]
        assert client.socket.is_closed
        client.connection.end()
        assert client.take() == []
        client.end()

    run(test)
