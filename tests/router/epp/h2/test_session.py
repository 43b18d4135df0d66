"""The rules of HTTP/2, with clients that keep them and clients that violate them."""

import asyncio
import struct
from collections.abc import Sequence

import hpack
import pytest

from kvtier.router.epp.h2 import frames
from kvtier.router.epp.h2.frames import Code
from kvtier.router.epp.h2.grpc import GrpcStatus
from kvtier.router.epp.h2.limits import H2Limits
from kvtier.router.epp.h2.stream import Stream
from tests.router.epp.h2.clients import (
    BEGIN,
    HEADERS,
    OK,
    Client,
    answered,
    block,
    data,
    fields_of,
    gone,
    kinds,
    message,
    number,
    opened,
    run,
    tracestate,
)

PING = b"8 bytes."
SETTING = struct.pack(">HI", frames.INITIAL_WINDOW_SIZE, 1 << 31)
UNHEARD = frames.PREFACE + frames.settings({})
BREACHES = {
    "no SETTINGS first": ((frames.PREFACE, opened()), Code.PROTOCOL_ERROR),
    "SETTINGS ACK first": ((frames.PREFACE, frames.frame(4, 1, 0)), Code.PROTOCOL_ERROR),
    "no HTTP/2": ((b"GET / HTTP/1.1\r\n\r\n",), Code.PROTOCOL_ERROR),
    "frame too long": ((BEGIN, frames.head(0, 0, 1, 1 << 18)), Code.FRAME_SIZE_ERROR),
    "DATA on stream 0": ((BEGIN, data(b"", 0, ends=True)), Code.PROTOCOL_ERROR),
    "DATA before HEADERS": ((BEGIN, data(b"x", 1)), Code.PROTOCOL_ERROR),
    "DATA after END_STREAM": ((BEGIN, opened(path="/holding"), data(message(b"x"), ends=True),
                            data(b"x")), Code.STREAM_CLOSED),
    "HEADERS after END_STREAM": ((BEGIN, opened(path="/holding"), data(message(b"x"), ends=True),
                               opened(ends=True)), Code.STREAM_CLOSED),
    "DATA on even stream": ((BEGIN, data(b"x", 2)), Code.PROTOCOL_ERROR),
    "HEADERS on stream 0": ((BEGIN, opened(0)), Code.PROTOCOL_ERROR),
    "HEADERS on even stream": ((BEGIN, opened(2)), Code.PROTOCOL_ERROR),
    "HEADERS twice": ((BEGIN, opened(), opened()), Code.PROTOCOL_ERROR),
    "interrupted block": ((BEGIN, frames.frame(1, 0, 1, block()), opened(3)),
                                    Code.PROTOCOL_ERROR),
    "CONTINUATION on another stream": ((BEGIN, frames.frame(1, 0, 1, block()),
                                        frames.frame(9, 4, 3)), Code.PROTOCOL_ERROR),
    "CONTINUATION without HEADERS": ((BEGIN, frames.frame(9, 4, 1)), Code.PROTOCOL_ERROR),
    "endless empty block": ((BEGIN, frames.frame(1, 0, 1), *[frames.frame(9, 0, 1)] * 99),
                            Code.ENHANCE_YOUR_CALM),
    "endless block": ((BEGIN, frames.frame(1, 0, 1),
                                      *[frames.frame(9, 0, 1, b"x" * 999)] * 600),
                                     Code.ENHANCE_YOUR_CALM),
    "too long block before ACK": ((UNHEARD, frames.frame(1, 4, 1, b"x" * 99_000)),
                                         Code.ENHANCE_YOUR_CALM),
    "too long continued block before ACK": (
        (UNHEARD, frames.frame(1, 0, 1, b"x" * 60_000), frames.frame(9, 4, 1, b"x" * 60_000)),
        Code.ENHANCE_YOUR_CALM,
    ),
    "malformed block": ((BEGIN, frames.frame(1, 4, 1, b"\xff\xff\xff")),
                             Code.COMPRESSION_ERROR),
    "RST_STREAM on stream 0": ((BEGIN, frames.reset(0, Code.CANCEL)), Code.PROTOCOL_ERROR),
    "RST_STREAM before HEADERS": ((BEGIN, frames.reset(1, Code.CANCEL)), Code.PROTOCOL_ERROR),
    "short RST_STREAM": ((BEGIN, opened(), frames.frame(3, 0, 1, b"x")), Code.FRAME_SIZE_ERROR),
    "SETTINGS on a stream": ((BEGIN, frames.frame(4, 0, 1)), Code.PROTOCOL_ERROR),
    "short SETTINGS": ((BEGIN, frames.frame(4, 0, 0, b"x")), Code.FRAME_SIZE_ERROR),
    "SETTINGS ACK with payload": ((BEGIN, frames.frame(4, 1, 0, b"x" * 6)), Code.FRAME_SIZE_ERROR),
    "too large initial window": ((BEGIN, frames.frame(4, 0, 0, SETTING)), Code.FLOW_CONTROL_ERROR),
    "PUSH_PROMISE": ((BEGIN, frames.frame(5, 4, 1, b"x" * 9)), Code.PROTOCOL_ERROR),
    "PING on a stream": ((BEGIN, frames.frame(6, 0, 1, PING)), Code.PROTOCOL_ERROR),
    "short PING": ((BEGIN, frames.frame(6, 0, 0, b"x")), Code.FRAME_SIZE_ERROR),
    "WINDOW_UPDATE of zero": ((BEGIN, frames.window_update(0, 0)), Code.PROTOCOL_ERROR),
    "connection window overflow": ((BEGIN, frames.window_update(0, (1 << 31) - 1)),
                                      Code.FLOW_CONTROL_ERROR),
    "stream window overflow": ((BEGIN, opened(), frames.window_update(1, (1 << 31) - 1)),
                                    Code.FLOW_CONTROL_ERROR),
    "WINDOW_UPDATE before HEADERS": ((BEGIN, frames.window_update(1, 1)), Code.PROTOCOL_ERROR),
    "DATA over the window": ((BEGIN, opened(path="/holding"), *[data(message(b"x" * 99_995))] * 11),
                             Code.FLOW_CONTROL_ERROR),
    "flood of PING": ((BEGIN, *[frames.frame(6, 0, 0, PING)] * 99), Code.ENHANCE_YOUR_CALM),
    "flood of SETTINGS": ((BEGIN, *[frames.settings({})] * 99), Code.ENHANCE_YOUR_CALM),
    "flood of empty DATA": ((BEGIN, opened(), *[data(b"")] * 99), Code.ENHANCE_YOUR_CALM),
    "flood of PRIORITY": ((BEGIN, *[frames.frame(2, 0, 1, b"12345")] * 99),
                               Code.ENHANCE_YOUR_CALM),
    "flood of GOAWAY": ((BEGIN, *[frames.goaway(0, Code.NO_ERROR)] * 99),
                            Code.ENHANCE_YOUR_CALM),
    "flood of unknown frames": ((BEGIN, *[frames.frame(77, 0, 0)] * 99),
                                   Code.ENHANCE_YOUR_CALM),
    "flood of canceled calls": (
        (BEGIN, *(opened(2 * n + 1) + frames.reset(2 * n + 1, Code.CANCEL) for n in range(99))),
        Code.ENHANCE_YOUR_CALM,
    ),
    "flood of invalid calls": (
        (BEGIN, *(opened(2 * n + 1, path="") for n in range(99))), Code.ENHANCE_YOUR_CALM,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BREACHES)
def test_protocol_violation_gets_goaway_with_its_code(name: str) -> None:
    parts, code = BREACHES[name]

    def test() -> None:
        limits = H2Limits(frames_burst=50, frames_per_s=1.0, stream_window_bytes=1_000_000)
        client = Client(limits)
        found = client.send(*parts)
        assert gone(found) == code, found[-1]
        assert client.broken == 1
        assert client.send(opened(99)) == []
        assert all(handler.said[-1] == "closed" for handler in client.handlers)
        client.end()

    run(test)


def test_server_settings_announce_limits() -> None:
    def test() -> None:
        client = Client(H2Limits(max_streams=7))
        settings, window = client.greeting
        assert dict(frames.parse_settings(settings[3])) == {
            frames.HEADER_TABLE_SIZE: 0,
            frames.MAX_CONCURRENT_STREAMS: 7,
            frames.INITIAL_WINDOW_SIZE: 1 << 20,
            frames.MAX_FRAME_SIZE: 1 << 17,
            frames.MAX_HEADER_LIST_SIZE: 96 << 10,
        }
        assert window == (frames.WINDOW_UPDATE, 0, 0, number((64 << 20) - 65_535))
        ping = frames.frame(frames.PING, 0, 0, PING)
        assert client.send(BEGIN, ping) == [
            (frames.SETTINGS, frames.ACK, 0, b""),
            (frames.PING, frames.ACK, 0, PING),
        ]

    run(test)


def test_header_block_may_have_padding_priority_and_continuations() -> None:
    def test() -> None:
        client = Client()
        content = block()
        flags = frames.PADDED | frames.HAS_PRIORITY
        first = b"\x02" + b"\x00\x00\x00\x00\x10" + content[:9] + b".."
        found = client.send(
            BEGIN,
            frames.frame(frames.HEADERS, flags, 1, first),
            frames.frame(frames.CONTINUATION, 0, 1, content[9:12]),
            frames.frame(frames.CONTINUATION, frames.END_HEADERS, 1, content[12:]),
            frames.frame(frames.DATA, frames.PADDED, 1, b"\x01" + message(b"hi") + b"."),
            frames.frame(
                frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1, b"\x00\x01a\x01b"
            ),
        )
        assert answered(found) == ([b"hi"], OK)

    run(test)


def long(stream: int, size: int, *, is_packed: bool) -> bytes:
    """Return the frames of a call with a long header from a gateway's client."""
    content = block() + tracestate(size, is_packed=is_packed)
    parts = [content[at : at + 16_384] for at in range(0, len(content), 16_384)]
    written = frames.frame(frames.HEADERS, 0, stream, parts[0])
    written += b"".join(frames.frame(frames.CONTINUATION, 0, stream, part) for part in parts[1:])
    return written + frames.frame(frames.CONTINUATION, frames.END_HEADERS, stream)


@pytest.mark.parametrize("is_packed", [True, False])
def test_too_long_headers_fail_only_their_call(is_packed: bool) -> None:
    def test() -> None:
        client = Client()
        found = client.send(BEGIN, opened(1), long(3, 100_000, is_packed=is_packed), opened(5))
        assert answered(found, 3) == ([], GrpcStatus.RESOURCE_EXHAUSTED)
        assert (frames.RST_STREAM, 0, 3, number(Code.NO_ERROR)) in found
        assert client.send(data(message(b"on its way"), 3)) == []
        for stream in (1, 5):
            found = client.send(data(message(b"on"), stream, ends=True))
            assert answered(found, stream) == ([b"on"], OK)
        found = client.send(long(7, 60_000, is_packed=is_packed), data(message(b"x"), 7, ends=True))
        assert answered(found, 7) == ([b"x"], OK)
        assert not client.broken

    run(test)


def test_too_long_trailers_end_stream() -> None:
    def test() -> None:
        client = Client()
        client.send(BEGIN, opened())
        flags = frames.END_HEADERS | frames.END_STREAM
        found = client.send(frames.frame(frames.HEADERS, flags, 1, b"x" * 99_000))
        assert answered(found) == ([], OK)

    run(test)


def waiting_for_windows(client: Client, count: int) -> range:
    """Open calls whose answers wait for their stream's window."""
    client.send(BEGIN, frames.settings({frames.INITIAL_WINDOW_SIZE: 0}))
    streams = range(1, 2 * count, 2)
    client.send(*(opened(stream) + data(message(b"x"), stream, ends=True) for stream in streams))
    return streams


def test_connection_window_update_skips_streams_without_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pumped: list[int] = []
    pump = Stream.pump

    def counted(stream: Stream) -> None:
        pumped.append(stream.number)
        pump(stream)

    def test() -> None:
        client = Client()
        streams = waiting_for_windows(client, 50)
        monkeypatch.setattr(Stream, "pump", counted)
        assert client.send(*[frames.window_update(0, 1)] * 100) == []
        assert pumped == []
        found = client.send(frames.window_update(streams[0], 100))
        found += client.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 100}))
        assert all(answered(found, stream) == ([b"x"], OK) for stream in streams)
        assert len(pumped) <= 1 + len(streams)

    run(test)


def test_streams_share_connection_window_in_turn() -> None:
    def test() -> None:
        client = Client()
        client.send(BEGIN, frames.settings({frames.INITIAL_WINDOW_SIZE: 1 << 20}))
        client.send(opened(1), data(message(b"x" * 65_530), 1))
        streams = (3, 5, 7)
        found = client.send(
            *(opened(stream) + data(message(b"abc"), stream, ends=True) for stream in streams)
        )
        for _ in range(4 * len(message(b"abc"))):
            found += client.send(frames.window_update(0, 1))
        assert all(answered(found, stream) == ([b"abc"], OK) for stream in streams)

    run(test)


def test_window_settings_cost_more_with_many_streams() -> None:
    def test() -> None:
        client = Client(H2Limits(frames_burst=50, frames_per_s=1.0))
        waiting_for_windows(client, 640)
        same = frames.settings({frames.INITIAL_WINDOW_SIZE: 0})
        assert gone(client.send(*[same] * 20)) is None
        changed = [frames.settings({frames.INITIAL_WINDOW_SIZE: size}) for size in (1, 2, 3)]
        assert gone(client.send(*changed)) == Code.ENHANCE_YOUR_CALM

    run(test)


def test_dynamic_table_works_until_settings_are_acknowledged() -> None:
    def test() -> None:
        client = Client()
        encoder = hpack.Encoder()
        fields = list(HEADERS.items())
        ends = frames.END_HEADERS | frames.END_STREAM
        client.send(frames.PREFACE, frames.settings({}))
        for stream in (1, 3, 5):
            found = client.send(frames.frame(frames.HEADERS, ends, stream, encoder.encode(fields)))
            assert answered(found, stream) == ([], OK)
        client.send(frames.frame(frames.SETTINGS, frames.ACK, 0))
        encoder.header_table_size = 0
        for stream in (7, 9):
            found = client.send(frames.frame(frames.HEADERS, ends, stream, encoder.encode(fields)))
            assert answered(found, stream) == ([], OK)

    run(test)


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"method": "GET"}, {":status": "405"}),
        (
            {"path": "/nobody"},
            {":status": "200", "grpc-status": str(int(GrpcStatus.UNIMPLEMENTED))},
        ),
    ],
)
def test_wrong_method_and_unknown_path_are_refused(
    changes: dict[str, str], fields: dict[str, str]
) -> None:
    def test() -> None:
        client = Client()
        found = client.send(BEGIN, opened(ends=True, **changes))
        assert kinds(found) == [frames.SETTINGS, frames.HEADERS]
        told = fields_of(found[1][3])
        assert {name: told[name] for name in fields} == fields

    run(test)


def test_request_without_grpc_content_type_gets_415() -> None:
    def test() -> None:
        client = Client()
        encoder = hpack.Encoder()
        encoder.header_table_size = 0
        content = encoder.encode([(":method", "POST"), (":path", "/echo")])
        found = client.send(BEGIN, frames.frame(frames.HEADERS, 5, 1, content))
        assert fields_of(found[1][3]) == {":status": "415"}

    run(test)


def test_call_without_path_is_reset_alone() -> None:
    def test() -> None:
        client = Client()
        found = client.send(BEGIN, opened(path=""), opened(3, ends=True))
        assert (frames.RST_STREAM, 0, 1, number(Code.PROTOCOL_ERROR)) in found
        assert answered(found, 3) == ([], OK)

    run(test)


def test_streams_over_limit_are_refused_until_others_end() -> None:
    def test() -> None:
        client = Client(H2Limits(max_streams=2))
        found = client.send(BEGIN, opened(1), opened(3), opened(5))
        assert (frames.RST_STREAM, 0, 5, number(Code.REFUSED_STREAM)) in found
        client.send(data(b"", 1, ends=True))
        assert answered(client.send(opened(7, ends=True)), 7) == ([], OK)

    run(test)


def test_calls_canceled_after_answer_cost_no_budget() -> None:
    def test() -> None:
        client = Client(H2Limits(frames_burst=5, frames_per_s=1.0))
        client.send(BEGIN)
        for stream in range(1, 201, 2):
            found = client.send(opened(stream), data(message(b"x"), stream))
            assert answered(found, stream)[0] == [b"x"]
            assert gone(client.send(frames.reset(stream, Code.CANCEL))) is None

    run(test)


def left(client: Client, *, streams: Sequence[bytes] = ()) -> list[frames.Frame]:
    client.send(BEGIN, *streams)
    client.connection.shut_down()
    return client.take()


def test_shutdown_sends_two_goaways_and_answers_streams_between() -> None:
    async def test() -> None:
        client = Client()
        warned = left(client, streams=[opened(1)])
        assert kinds(warned) == [frames.GOAWAY, frames.PING]
        assert warned[0][3] == number(frames.MAX_STREAM) + number(0)
        assert client.handlers[0].said == ["stopping"]
        client.send(opened(3))
        assert client.handlers[1].said == ["stopping"]
        final = client.send(frames.frame(frames.PING, frames.ACK, 0, warned[1][3]))
        assert final == [(frames.GOAWAY, 0, 0, number(3) + number(0))]
        # Opened after the final GOAWAY: neither answered nor an error.
        assert client.send(opened(5), data(message(b"late"), 5), frames.window_update(5, 1)) == []
        found = client.send(data(message(b"on"), 1, ends=True), data(b"", 3, ends=True))
        assert answered(found, 1) == ([b"on"], OK)
        assert answered(found, 3) == ([], OK)
        assert not client.socket.is_closed
        await asyncio.sleep(0)
        assert client.socket.is_closed

    run(test)


def test_shutdown_without_streams_closes_after_acknowledgment() -> None:
    async def test() -> None:
        client = Client()
        warned = left(client)
        await asyncio.sleep(0)
        assert not client.socket.is_closed
        client.send(frames.frame(frames.PING, frames.ACK, 0, warned[1][3]))
        await asyncio.sleep(0)
        assert client.socket.is_closed

    run(test)
