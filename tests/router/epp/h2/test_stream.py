"""Streams seen by an HTTP/2 client: windows, order of messages, and the end."""

import asyncio

import pytest

from kvtier.router.epp.h2 import frames
from kvtier.router.epp.h2.frames import Code
from kvtier.router.epp.h2.grpc import GrpcStatus
from kvtier.router.epp.h2.limits import H2Limits
from tests.router.epp.h2.clients import (
    BEGIN,
    OK,
    Client,
    answered,
    data,
    gone,
    kinds,
    message,
    number,
    opened,
    run,
)


def test_message_and_end_are_answered_in_one_write() -> None:
    def test() -> None:
        client = Client()
        client.send(BEGIN)
        client.connection.data_received(opened() + data(message(b"hi"), ends=True))
        assert len(client.socket.writes) == 1
        assert answered(client.take()) == ([b"hi"], OK)
        assert client.handlers[0].said == ["sent", "half closed", "closed"]

    run(test)


def test_message_is_handled_before_next_is_delivered() -> None:
    def test() -> None:
        client = Client()
        three = b"".join(message(content) for content in (b"a", b"b", b"c"))
        client.send(BEGIN, opened(path="/telling"), data(three))
        assert client.handlers[0].said == ["sent", "a", "sent", "b", "sent", "c"]

    run(test)


def test_finished_answer_is_one_write_and_resets_client_side() -> None:
    def test() -> None:
        client = Client()
        client.send(BEGIN)
        client.connection.data_received(opened(path="/whole") + data(message(b"hi")))
        assert len(client.socket.writes) == 1
        found = client.take()
        assert kinds(found) == [frames.HEADERS, frames.DATA, frames.HEADERS, frames.RST_STREAM]
        assert found[-1][3] == number(Code.NO_ERROR)
        assert answered(found) == ([b"hi"], OK)
        # Frames that were in flight, or that follow a reset, are ignored.
        assert client.send(data(message(b"late")), frames.reset(1, Code.NO_ERROR)) == []
        assert client.handlers[0].got == [b"hi"]
        assert answered(client.send(opened(3), data(message(b"on"), 3, ends=True)), 3)[1] == OK

    run(test)


@pytest.mark.parametrize("secure", [False, True])
def test_try_finish_sends_nothing_if_it_does_not_fit(secure: bool) -> None:
    def test() -> None:
        client = Client(is_secure=secure)
        client.send(BEGIN)
        client.send(opened(path="/whole"), data(message(b"x" * 16_300)))
        assert client.handlers[0].said == ["cannot"], "larger than a TLS record"
        client.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 9}))
        client.send(opened(3, path="/whole"), data(message(b"hello"), 3))
        assert client.handlers[1].said == ["cannot"], "larger than the window"
        client.send(frames.window_update(3, 1))
        client.socket.is_full = True
        client.send(data(message(b"hello"), 3))
        assert client.handlers[1].said == ["cannot"] * 2, "the socket still has unsent data"
        client.socket.is_full = False
        assert answered(client.send(data(message(b"hello"), 3)), 3) == ([b"hello"], OK)

    run(test)


def test_finished_answer_stays_within_one_tls_record() -> None:
    def test() -> None:
        client = Client(is_secure=True)
        client.send(BEGIN)
        client.connection.data_received(
            b"".join(
                opened(stream, path="/whole") + data(message(b"x" * 6_000), stream)
                for stream in (1, 3, 5, 7)
            )
        )
        assert [len(write) // 6_000 for write in client.socket.writes] == [2, 2]
        assert max(map(len, client.socket.writes)) <= 16_384

    run(test)


def test_send_respects_stream_window_and_order() -> None:
    def test() -> None:
        client = Client()
        client.send(BEGIN, frames.settings({frames.INITIAL_WINDOW_SIZE: 10}))
        found = client.send(opened(), data(message(b"0123456789") + message(b"abc"), ends=True))
        sent = [payload for kind, _, _, payload in found if kind == frames.DATA]
        assert b"".join(sent) == (message(b"0123456789") + message(b"abc"))[:10]
        assert client.handlers[0].got == [b"0123456789"], "the next message waits for the answer"
        more = client.send(frames.window_update(1, 7))
        assert sum(len(payload) for kind, _, _, payload in more if kind == frames.DATA) == 7
        # SETTINGS may make a window negative, which must then be refilled.
        assert kinds(client.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 5}))) == [
            frames.SETTINGS
        ]
        assert client.send(frames.window_update(1, 5)) == []
        rest = client.send(frames.window_update(1, 100))
        assert answered([*found, *more, *rest]) == ([b"0123456789", b"abc"], OK)

    run(test)


def test_send_respects_connection_window() -> None:
    def test() -> None:
        client = Client()
        client.send(BEGIN, frames.settings({frames.INITIAL_WINDOW_SIZE: 1 << 20}))
        content = b"x" * 40_000
        found = client.send(
            *(opened(stream) + data(message(content), stream, ends=True) for stream in (1, 3))
        )
        sizes = [len(payload) for kind, _, _, payload in found if kind == frames.DATA]
        assert sum(sizes) == frames.DEFAULT_WINDOW_BYTES
        assert max(sizes) <= frames.DEFAULT_FRAME_BYTES
        found += client.send(frames.window_update(0, 1 << 20))
        assert answered(found, 1) == answered(found, 3) == ([content], OK)

    run(test)


def test_send_uses_peers_max_frame_size() -> None:
    def test() -> None:
        client = Client()
        client.send(BEGIN, frames.settings({frames.MAX_FRAME_SIZE: 1 << 20}))
        found = client.send(opened(), data(message(b"x" * 60_000)))
        assert [len(payload) for kind, _, _, payload in found if kind == frames.DATA] == [60_005]

    run(test)


def test_stream_window_grows_only_for_delivered_messages() -> None:
    limits = H2Limits(stream_window_bytes=1000, connection_window_bytes=100_000)

    def test() -> None:
        client = Client(limits)
        client.send(BEGIN, opened(path="/holding"))
        assert client.send(data(message(b"a" * 395))) == []
        assert client.send(data(message(b"b" * 395))) == []
        (handler,) = client.handlers
        assert handler.got == [b"a" * 395]
        handler.call.release()
        client.connection.flush()
        assert handler.got[1:] == [b"b" * 395]
        assert client.take() == []
        handler.call.release()
        client.connection.flush()
        assert client.take() == [(frames.WINDOW_UPDATE, 0, 1, number(800))]
        assert gone(client.send(data(b"x" * 1001))) == Code.FLOW_CONTROL_ERROR
        assert handler.said == ["closed"]

    run(test)


def test_data_over_connection_window_is_refused() -> None:
    def test() -> None:
        client = Client(H2Limits(connection_window_bytes=100_000))
        client.send(BEGIN, opened(path="/holding"), opened(3, path="/holding"))
        assert client.send(*(data(message(b"x" * 49_995), stream) for stream in (1, 3))) == []
        assert gone(client.send(data(b"x", 1))) == Code.FLOW_CONTROL_ERROR

    run(test)


def test_connection_window_recovers_from_ended_streams() -> None:
    limits = H2Limits(stream_window_bytes=1000, connection_window_bytes=100_000)

    def test() -> None:
        client = Client(limits)
        client.send(BEGIN)
        found = []
        for stream in range(1, 401, 2):
            found += client.send(opened(stream, path="/holding"), data(message(b"x" * 395), stream))
            found += client.send(
                data(message(b"y" * 395), stream), frames.reset(stream, Code.CANCEL)
            )
            found += client.send(data(message(b"z" * 95), stream))
        given = [payload for kind, _, where, payload in found if kind == frames.WINDOW_UPDATE]
        assert sum(int.from_bytes(payload, "big") for payload in given) >= 200 * 900 - 50_000

    run(test)


def test_incomplete_messages_count_in_memory_budget() -> None:
    def test() -> None:
        client = Client(H2Limits(max_message_bytes=4 << 20))
        client.send(BEGIN)
        part = message(b"x" * (2 << 20))[: 1 << 17]
        client.send(opened(), data(part))
        assert client.memory.taken_bytes == len(part)
        client.send(frames.reset(1, Code.CANCEL))
        assert client.memory.taken_bytes == 0
        client.memory.take(1 << 20)
        found = client.send(opened(3), data(part, 3), data(b"x", 3))
        assert answered(found, 3) == ([], GrpcStatus.RESOURCE_EXHAUSTED)
        assert client.handlers[1].said == ["out_of_memory", "closed"]
        client.memory.release(1 << 20)
        assert client.memory.taken_bytes == 0

    run(test)


def test_small_incomplete_message_is_buffered_beyond_memory_budget() -> None:
    def test() -> None:
        client = Client()
        client.send(BEGIN)
        client.memory.take(1 << 20)
        content = message(b"x" * 60_000)
        found = client.send(opened(), data(content[:700]), data(content[700:30_000]))
        client.memory.release(1 << 20)
        client.send(data(content[30_000:40_000]))
        client.memory.take(1 << 19)
        found += client.send(data(content[40_000:] + content[:9], ends=True))
        assert answered(found) == ([content[5:]], OK)
        assert client.memory.taken_bytes == 1 << 19

    run(test)


def test_handler_may_refuse_message_over_memory_budget() -> None:
    def test() -> None:
        client = Client()
        client.send(BEGIN)
        client.memory.take(1 << 20)
        part = message(b"x" * 300_000)
        found = client.send(
            opened(path="/refusing"), data(part[: 1 << 17]), data(part[1 << 17 : 2 << 17])
        )
        assert answered(found) == ([b"too much"], OK)

    run(test)


def test_input_after_end_is_discarded() -> None:
    limits = H2Limits(connection_window_bytes=200_000)

    def test() -> None:
        client = Client(limits)
        client.send(BEGIN, frames.settings({frames.INITIAL_WINDOW_SIZE: 0}))
        client.send(
            opened(path="/holding"), data(message(b"a")), data(message(b"b" * 9_000)[:5_000])
        )
        (handler,) = client.handlers
        handler.call.send((b"an answer that cannot go out",))
        client.send(data(message(b"b" * 9_000)[5_000:]), data(message(b"c" * 9_000)[:5_000]))
        assert client.memory.taken_bytes == 5_000
        handler.call.end()
        assert client.memory.taken_bytes == 0
        assert kinds(client.send(data(b"x" * 90_000))) == [frames.WINDOW_UPDATE], (
            "the connection's window recovers"
        )
        assert client.memory.taken_bytes == 0
        found = client.send(frames.window_update(1, 100))
        assert answered(found) == ([b"an answer that cannot go out"], OK)
        assert handler.got == [b"a"]

    run(test)


def test_check_resets_unread_stream() -> None:
    def test() -> None:
        client = Client(H2Limits(unread_checks=2))
        session = client.connection._session
        client.send(BEGIN, frames.settings({frames.INITIAL_WINDOW_SIZE: 3}))
        client.send(opened(), data(message(b"hello"), ends=True), opened(3, path="/holding"))
        for _ in range(2):
            session.check()
            session.check()
            assert kinds(client.send(frames.window_update(1, 1))) == [frames.DATA], (
                "the client reads the answer"
            )
        for _ in range(3):
            assert client.handlers[0].said == []
            session.check()
        client.connection.flush()
        assert client.take() == [(frames.RST_STREAM, 0, 1, number(Code.INTERNAL_ERROR))]
        assert client.handlers[0].said == ["closed"]
        assert client.handlers[1].said == [], "a stream without unsent data stays"

    run(test)


def test_invalid_message_ends_only_its_stream() -> None:
    def test() -> None:
        client = Client(H2Limits(max_message_bytes=10))
        client.send(BEGIN)
        assert answered(client.send(opened(), data(message(b"x" * 11)))) == (
            [],
            GrpcStatus.RESOURCE_EXHAUSTED,
        )
        found = client.send(opened(3), data(b"\x01\x00\x00\x00\x01x", 3))
        assert answered(found, 3) == ([], GrpcStatus.UNIMPLEMENTED)
        assert answered(client.send(opened(5), data(message(b"ok"), 5, ends=True)), 5)[1] == OK

    run(test)


def test_handler_exception_ends_only_its_call() -> None:
    def test() -> None:
        client = Client()
        client.send(BEGIN)
        found = client.send(opened(path="/failing"), data(message(b"now")))
        assert answered(found) == ([], GrpcStatus.INTERNAL)
        found = client.send(opened(3, path="/failing"), data(message(b"later"), 3))
        assert (frames.RST_STREAM, 0, 3, number(Code.INTERNAL_ERROR)) in found
        assert client.handlers[1].said == ["closed"]
        found = client.send(opened(5, path="/failing"), data(message(b"second"), 5))
        assert kinds(found) == [frames.HEADERS, frames.RST_STREAM], "nothing follows the reset"
        assert answered(client.send(opened(7), data(message(b"ok"), 7, ends=True)), 7)[1] == OK

    run(test)


def test_abort_with_unsent_data_resets_stream() -> None:
    def test() -> None:
        client = Client()
        client.send(BEGIN, frames.settings({frames.INITIAL_WINDOW_SIZE: 3}))
        client.send(opened(), data(message(b"hello")))
        (handler,) = client.handlers
        handler.call.abort(GrpcStatus.UNAVAILABLE, "late")
        client.connection.flush()
        assert client.take() == [(frames.RST_STREAM, 0, 1, number(Code.INTERNAL_ERROR))]
        assert handler.said == ["closed"]
        handler.call.send((b"more",))
        handler.call.end()
        client.connection.flush()
        assert client.take() == []

    run(test)


def test_later_answers_share_one_write() -> None:
    async def test() -> None:
        client = Client()
        client.send(BEGIN, opened(), opened(3))
        for handler in client.handlers:
            handler.call.send((b"late",))
            handler.call.end()
        assert client.socket.writes == []
        await asyncio.sleep(0)
        assert len(client.socket.writes) == 1
        found = client.take()
        assert answered(found, 1) == answered(found, 3) == ([b"late"], OK)

    run(test)
