"""Streams over real gRPC: which are closed, which are followed, and which end with an error."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest
from envoy.service.ext_proc.v3.external_processor_pb2_grpc import ExternalProcessorStub
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.router.epp import service
from kvtier.router.epp.conversation import BodyMode, GatewayRequest
from kvtier.router.epp.h2 import frames
from kvtier.router.epp.picking import FleetPicking, PickingOptions, Placement
from kvtier.router.epp.service import PROCESS, StreamOptions
from tests.router.epp.fleets import ADDRESSES, Characters, First, fleet_of
from tests.router.epp.gateways import BROKEN_OFF, DUPLEX, Gateway, run
from tests.router.epp.h2 import clients
from tests.router.epp.protocol import (
    POST,
    destination,
    echoed,
    request_body,
    request_headers,
    request_trailers,
    response_body,
    response_headers,
)
from tests.router.epp.test_conversation import MESSAGES


def test_subset_without_ready_endpoints_gets_503() -> None:
    async def test(gateway: Gateway) -> None:
        (answer,) = await gateway.exchange(
            request_headers(ends=True, subset=["10.9.9.9:1"], **DUPLEX), ends=False
        )
        assert answer.immediate_response.status.code == 503

    run(test)


def test_body_over_limit_gets_413() -> None:
    async def test(gateway: Gateway) -> None:
        (answer,) = await gateway.exchange(
            request_headers(**DUPLEX), request_body(b"x" * 11, ends=False), ends=False
        )
        assert answer.immediate_response.status.code == 413

    run(test, StreamOptions(max_body_bytes=10))


def test_bodies_of_all_streams_share_one_memory_budget() -> None:
    async def test(gateway: Gateway) -> None:
        first = ExternalProcessorStub(gateway.channel).Process()
        await first.write(request_headers(**DUPLEX))
        await first.write(request_body(b" " * 6_000, ends=False))
        second = [request_headers(**DUPLEX), request_body(b'{"model": "m"}' + b" " * 4_000)]
        async with asyncio.timeout(10):
            while (await gateway.exchange(*second))[0].HasField("request_headers"):
                await asyncio.sleep(0.001)  # the first stream's body has not arrived yet
        (answer,) = await gateway.exchange(*second)
        assert answer.immediate_response.status.code == 429
        first.cancel()
        async with asyncio.timeout(10):
            while (await gateway.exchange(*second))[0].HasField("immediate_response"):
                await asyncio.sleep(0.001)  # until the picker has seen the end

    run(test, StreamOptions(max_held_bytes=10_000))


def test_headers_count_in_memory_budget_until_answer() -> None:
    long = request_headers({**POST, "x-long": "y" * 8_000}, **DUPLEX)

    async def test(gateway: Gateway) -> None:
        call = ExternalProcessorStub(gateway.channel).Process()
        await call.write(long)
        async with asyncio.timeout(10):
            while gateway.held.taken_bytes < 8_000:
                await asyncio.sleep(0.001)
        (answer,) = await gateway.exchange(long, ends=False)
        assert answer.immediate_response.status.code == 429
        await call.write(request_body())
        assert destination(await call.read())
        await gateway.settled()
        assert gateway.held.taken_bytes == 0

    run(test, StreamOptions(max_held_bytes=10_000))


def test_buffered_body_over_memory_budget_gets_429() -> None:
    async def test(gateway: Gateway) -> None:
        head = request_headers(mode=BodyMode.BUFFERED)
        answers = await gateway.exchange(head, request_body(b"x" * 900_000), ends=False)
        assert answers[-1].immediate_response.status.code == 429
        await gateway.settled()
        assert gateway.held.taken_bytes == 0

    run(test, StreamOptions(max_held_bytes=300_000))


def test_unexpected_message_ends_stream_with_invalid_argument() -> None:
    async def test(gateway: Gateway) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await gateway.exchange(request_body())
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "kvtier_epp_broken_streams_total 1.0" in gateway.meter.render().decode()

    run(test)


def in_duplex(**fields: Any) -> ProcessingRequest:
    return request_headers(response_mode=BodyMode.FULL_DUPLEX, **DUPLEX, **fields)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_full_duplex_stream_is_closed_with_answer(secure: bool) -> None:
    async def test(gateway: Gateway) -> None:
        body = b'{"model": "m", "noise": "' + b"x" * 15_000 + b'"}'
        answers = await gateway.exchange(in_duplex(), request_body(body), ends=False)
        assert echoed(answers) == body
        assert not any(member.endpoint.in_flight for member in gateway.fleet.members)

    run(test, secure=secure)


@pytest.mark.parametrize("observes", [False, True], ids=["too large to close", "observed"])
def test_response_is_followed_to_its_end(observes: bool) -> None:
    async def test(gateway: Gateway) -> None:
        body = b'{"model": "m", "noise": "' + b"x" * (0 if observes else 300_000) + b'"}'
        call = ExternalProcessorStub(gateway.channel).Process()
        await call.write(in_duplex())
        await call.write(request_body(body))
        assert destination(await call.read())
        back = b""
        while len(back) < len(body):
            back += echoed([await call.read()])
        assert back == body
        assert [member.endpoint.in_flight for member in gateway.fleet.members] == [1, 0, 0, 0]
        for message in (response_headers(), response_body(b"abc"), response_body(b"", ends=True)):
            await call.write(message)
            answer = await call.read()
            kind = "response_body" if message.HasField("response_body") else "response_headers"
            assert answer.WhichOneof("response") == kind
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        await gateway.settled()

    run(test, StreamOptions(observes=observes))


def test_stream_with_large_answer_is_closed_if_response_is_not_full_duplex() -> None:
    async def test(gateway: Gateway) -> None:
        body = b'{"model": "m", "noise": "' + b"x" * 3_000_000 + b'"}'
        messages = (request_headers(**DUPLEX), request_body(body))
        assert echoed(await gateway.exchange(*messages, ends=False)) == body
        await gateway.settled()

    async def buffered(gateway: Gateway) -> None:
        head = request_headers(mode=BodyMode.BUFFERED, response_mode=BodyMode.FULL_DUPLEX)
        body = request_body(b'{"model": "m", "noise": "' + b"x" * 3_000_000 + b'"}')
        answers = await gateway.exchange(head, body, ends=False)
        assert destination(answers[1])

    run(test)
    run(buffered)


def test_streamed_response_is_followed_only_with_observes() -> None:
    head = request_headers(ends=True, response_mode=BodyMode.STREAMED, **DUPLEX)

    async def closes(gateway: Gateway) -> None:
        assert len(await gateway.exchange(head, ends=False)) == 1

    async def follows(gateway: Gateway) -> None:
        assert len(await gateway.exchange(head, response_headers())) == 2

    run(closes)
    run(follows, StreamOptions(observes=True))


@pytest.mark.parametrize(
    "messages",
    [
        [request_headers(mode=BodyMode.STREAMED), request_body(ends=False), request_body()],
        [request_headers(mode=BodyMode.STREAMED), request_trailers()],
        [request_headers(mode=BodyMode.BUFFERED), request_body(ends=False), request_trailers()],
    ],
)
@pytest.mark.parametrize("is_told", [True, False], ids=["reported", "default"])
def test_open_stream_answers_rest_of_request(
    messages: Sequence[ProcessingRequest], is_told: bool
) -> None:
    first, *rest = messages
    mode = BodyMode(first.protocol_config.request_body_mode)
    if not is_told:
        first = request_headers()

    async def test(gateway: Gateway) -> None:
        answers = await gateway.exchange(first, *rest, response_headers())
        kinds = [message.WhichOneof("request") for message in (first, *rest)]
        assert [a.WhichOneof("response") for a in answers] == [*kinds, "response_headers"]

    run(test, StreamOptions(observes=True, body_mode=mode if not is_told else BodyMode.FULL_DUPLEX))


def test_response_of_request_placed_elsewhere_passes() -> None:
    async def test(gateway: Gateway) -> None:
        answers = await gateway.exchange(response_headers(), response_body(b"x", ends=True))
        assert [answer.WhichOneof("response") for answer in answers] == [
            "response_headers",
            "response_body",
        ]

    run(test)


def test_observability_mode_gets_no_answer() -> None:
    async def test(gateway: Gateway) -> None:
        head = request_headers(**DUPLEX)
        head.observability_mode = True
        assert await gateway.exchange(head, ends=False) == []

    run(test)


def test_malformed_message_ends_stream_with_invalid_argument() -> None:
    async def test(gateway: Gateway) -> None:
        call = gateway.channel.stream_stream(PROCESS.decode())()
        await call.write(b"\xff\xff\xff")
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        await gateway.settled()
        assert "kvtier_epp_broken_streams_total 1.0" in gateway.meter.render().decode()

    run(test)


def test_unread_answer_is_aborted_and_releases_memory() -> None:
    async def test(gateway: Gateway) -> None:
        call = ExternalProcessorStub(gateway.channel).Process()
        await call.write(request_headers(**DUPLEX))
        await call.write(request_body(b'{"model": "m", "noise": "' + b"x" * 12_000_000 + b'"}'))
        async with asyncio.timeout(20):
            while gateway.meter.open_streams:
                await asyncio.sleep(0.01)
        assert gateway.held.taken_bytes == 0
        call.cancel()

    run(test, StreamOptions(request_timeout_s=2.0))


@asynccontextmanager
async def without_window(gateway: Gateway, *messages: ProcessingRequest) -> AsyncIterator[None]:
    """Open a stream with a flow-control window of zero."""
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(frames.PREFACE + frames.settings({frames.INITIAL_WINDOW_SIZE: 0}))
    writer.write(clients.opened(path=PROCESS.decode()))
    for message in messages:
        writer.write(clients.data(clients.message(message.SerializeToString())))
    yield
    writer.close()


WITHOUT_WINDOW = [
    [request_headers(**DUPLEX), request_body(b"x" * 50_000, ends=False)],
    [request_headers(mode=BodyMode.BUFFERED), request_body(b"x" * 50_000)],
    [request_headers(**DUPLEX), request_body(b'{"model": "m"}' + b" " * 50_000)],
]


@pytest.mark.parametrize("messages", WITHOUT_WINDOW, ids=["refused", "buffered", "answered"])
def test_stream_without_window_times_out(
    messages: Sequence[ProcessingRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_TIMEOUT_ANSWER_S", 0.05)

    async def test(gateway: Gateway) -> None:
        async with without_window(gateway, *messages), asyncio.timeout(10):
            while not gateway.held.taken_bytes:
                await asyncio.sleep(0.001)
            await gateway.settled()
            assert gateway.held.taken_bytes == 0

    run(test, StreamOptions(request_timeout_s=0.2))


def test_unsent_refusal_holds_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_TIMEOUT_ANSWER_S", 60.0)

    async def test(gateway: Gateway) -> None:
        async with without_window(gateway, *WITHOUT_WINDOW[0]), asyncio.timeout(10):
            while not gateway.held.taken_bytes:
                await asyncio.sleep(0.001)
            while gateway.held.taken_bytes:
                await asyncio.sleep(0.001)
            assert gateway.meter.open_streams == 1

    run(test, StreamOptions(request_timeout_s=0.2))


async def stopping(gateway: Gateway) -> asyncio.Task[None]:
    """Start to stop the picker; return once its streams have been told."""
    task = asyncio.create_task(gateway.server.stop(0, 20))
    while not gateway.server._server._context.is_stopping:
        await asyncio.sleep(0)
    return task


async def stopped(task: asyncio.Task[None]) -> None:
    async with asyncio.timeout(10):
        await task


@pytest.mark.parametrize("mode", [BodyMode.NONE, BodyMode.STREAMED, BodyMode.FULL_DUPLEX])
def test_stop_closes_streams_that_lose_nothing(mode: BodyMode) -> None:
    async def test(gateway: Gateway) -> None:
        call = ExternalProcessorStub(gateway.channel).Process()
        await call.write(request_headers(response_mode=mode, ends=True, **DUPLEX))
        assert destination(await call.read())
        await call.write(response_headers())
        assert (await call.read()).HasField("response_headers")
        task = await stopping(gateway)
        if mode is BodyMode.FULL_DUPLEX:
            await call.write(response_body(b"rest", ends=True))
            assert (await call.read()).HasField("response_body")
            await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
        await stopped(task)
        await gateway.settled()

    run(test, StreamOptions(observes=True))


class WaitingPicking:
    """A picking that waits until `goes_on` is set."""

    def __init__(self) -> None:
        self.is_asked, self.goes_on = asyncio.Event(), asyncio.Event()
        self._picking = FleetPicking(fleet_of(), First(), Characters(), PickingOptions())

    async def choose(self, asked: GatewayRequest) -> Placement:
        self.is_asked.set()
        await self.goes_on.wait()
        return await self._picking.choose(asked)


def test_stop_follows_no_new_responses() -> None:
    picking = WaitingPicking()

    async def test(gateway: Gateway) -> None:
        call = ExternalProcessorStub(gateway.channel).Process()
        await call.write(request_headers(response_mode=BodyMode.STREAMED, ends=True, **DUPLEX))
        await picking.is_asked.wait()
        task = await stopping(gateway)
        picking.goes_on.set()
        assert destination(await call.read())
        assert await call.read() is grpc.aio.EOF
        await stopped(task)

    run(test, StreamOptions(observes=True), picking)


def test_stop_ends_stream_that_shows_only_response() -> None:
    async def test(gateway: Gateway) -> None:
        call = ExternalProcessorStub(gateway.channel).Process()
        async with asyncio.timeout(10):
            while not gateway.meter.open_streams:
                await asyncio.sleep(0.001)
        task = await stopping(gateway)
        first = response_headers()
        first.protocol_config.response_body_mode = BodyMode.STREAMED.value
        await call.write(first)
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
        await stopped(task)

    run(test)


def test_canceled_stream_releases_memory_and_load() -> None:
    async def test(gateway: Gateway) -> None:
        calls = [ExternalProcessorStub(gateway.channel).Process() for _ in range(20)]
        for call in calls:
            await call.write(request_headers(**DUPLEX))
            await call.write(request_body(b"x" * 100_000, ends=False))
        async with asyncio.timeout(10):
            while gateway.held.taken_bytes < 20 * 100_000:
                await asyncio.sleep(0.001)
        for call in calls:
            call.cancel()
        await gateway.settled()
        assert gateway.held.taken_bytes == 0

    run(test)


def test_gateway_deadline_ends_stream() -> None:
    async def test(gateway: Gateway) -> None:
        call = ExternalProcessorStub(gateway.channel).Process(timeout=0.05)
        await call.write(request_headers(**DUPLEX))
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await gateway.settled()

    run(test)


@settings(max_examples=60)
@given(st.lists(st.lists(MESSAGES, max_size=6), max_size=4))
def test_any_message_sequence_ends_without_leak(
    sequences: Sequence[Sequence[ProcessingRequest]],
) -> None:
    async def test(gateway: Gateway) -> None:
        for sequence in sequences:
            answers = []
            code, details = grpc.StatusCode.OK, None
            try:
                answers = await gateway.exchange(*sequence)
            except grpc.aio.AioRpcError as error:
                code, details = error.code(), error.details()
            if details != BROKEN_OFF:
                assert code in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT), details
            found = [named for answer in answers if (named := destination_of(answer))]
            assert len(found) <= 1
            for named in found:
                assert set(named.split(",")) <= set(ADDRESSES)
        await gateway.settled()

    run(test)


def destination_of(answer: Any) -> str | None:
    if not answer.WhichOneof("response").startswith("request_"):
        return None
    return destination(answer)
