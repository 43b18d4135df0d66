"""The server over real gRPC, asked as a gateway asks."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest
from envoy.service.ext_proc.v3.external_processor_pb2_grpc import ExternalProcessorStub
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.errors import InvalidSettings
from kvtier.router.extproc import certificates
from kvtier.router.extproc.conversation import Asked, BodyMode
from kvtier.router.extproc.health import Health
from kvtier.router.extproc.metering import Meter
from kvtier.router.extproc.options import Options
from kvtier.router.extproc.picking import Choice, FleetPicking
from kvtier.router.extproc.picking import Options as PickingOptions
from kvtier.router.extproc.server import Picker, Server
from tests.router.extproc.fleets import ADDRESSES, Characters, First, fleet_of
from tests.router.extproc.protocol import (
    destination,
    echoed,
    request_body,
    request_headers,
    response_body,
    response_headers,
)
from tests.router.extproc.test_conversation import MESSAGES

DUPLEX = {"mode": BodyMode.FULL_DUPLEX}
BROKEN_OFF = "Internal error from Core"
"""What the client library says when a stream has ended while it was writing."""


class Failing:
    async def choose(self, asked: Asked) -> Choice:
        raise RuntimeError("a bug")


class Slow:
    async def choose(self, asked: Asked) -> Choice:
        await asyncio.sleep(60)
        raise AssertionError


class Gateway:
    def __init__(self, port: int, channel: grpc.aio.Channel, fleet: Any, meter: Meter) -> None:
        self.port = port
        self.channel = channel
        self.fleet = fleet
        self.meter = meter

    async def exchange(self, *messages: ProcessingRequest, ends: bool = True) -> list[Any]:
        """Every answer, until the picker ends the stream."""
        call = ExternalProcessorStub(self.channel).Process()
        for message in messages:
            try:
                await call.write(message)
            except grpc.aio.AioRpcError:
                break
            except asyncio.InvalidStateError:
                break
        if ends:
            await call.done_writing()
        async with asyncio.timeout(10):
            return [answer async for answer in call]

    async def settled(self) -> None:
        """A client may hear of the end before the picker has put everything away."""
        async with asyncio.timeout(10):
            while self.meter.open_streams:
                await asyncio.sleep(0.001)
        assert not any(member.endpoint.in_flight for member in self.fleet.members)


@asynccontextmanager
async def served(
    options: Options | None = None, picking: Any = None, *, secure: bool = False
) -> AsyncIterator[Gateway]:
    fleet = fleet_of()
    meter = Meter()
    picking = picking or FleetPicking(fleet, First(), Characters(), PickingOptions())

    def arrive(choice: Choice) -> Any:
        return fleet.arrive(choice.endpoint, choice.tokens, choice.missing_tokens)

    options = options or Options()
    server = Server(Picker(picking, meter, options, observer=arrive), Health())
    pair = certificates.self_signed(dt.datetime.now(dt.UTC))
    port = server.bind("127.0.0.1", 0, certificates.context(pair) if secure else None)
    server.bind_probes("127.0.0.1", 0)
    await server.start()
    server.health.ready(is_ready=True)
    address = f"localhost:{port}"
    if secure:
        trusted = grpc.ssl_channel_credentials(pair.certificate)
        channel = grpc.aio.secure_channel(address, trusted)
    else:
        channel = grpc.aio.insecure_channel(address)
    try:
        yield Gateway(port, channel, fleet, meter)
    finally:
        await channel.close()
        await server.stop(0, 0)


def run(
    test: Callable[[Gateway], Awaitable[None]],
    options: Options | None = None,
    picking: Any = None,
    *,
    secure: bool = False,
) -> None:
    async def go() -> None:
        async with served(options, picking, secure=secure) as gateway:
            await test(gateway)

    asyncio.run(go())


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_a_request_is_answered_and_the_stream_closed(secure: bool) -> None:
    async def test(gateway: Gateway) -> None:
        answers = await gateway.exchange(
            request_headers(**DUPLEX), request_body(b'{"model": "m"}'), ends=False
        )
        assert destination(answers[0]) == ",".join(ADDRESSES[:3])
        assert echoed(answers) == b'{"model": "m"}'
        await gateway.settled()

    run(test, secure=secure)


def test_a_subset_of_nobody_is_503() -> None:
    async def test(gateway: Gateway) -> None:
        (answer,) = await gateway.exchange(
            request_headers(ends=True, subset=["10.9.9.9:1"], **DUPLEX), ends=False
        )
        assert answer.immediate_response.status.code == 503

    run(test)


def test_a_body_over_the_bound_is_413() -> None:
    async def test(gateway: Gateway) -> None:
        (answer,) = await gateway.exchange(
            request_headers(**DUPLEX), request_body(b"x" * 11, ends=False), ends=False
        )
        assert answer.immediate_response.status.code == 413

    run(test, Options(max_body_bytes=10))


def test_bodies_of_all_streams_together_are_bounded() -> None:
    async def test(gateway: Gateway) -> None:
        first = ExternalProcessorStub(gateway.channel).Process()
        await first.write(request_headers(**DUPLEX))
        await first.write(request_body(b" " * 60, ends=False))
        second = [request_headers(**DUPLEX), request_body(b'{"model": "m"}' + b" " * 40)]
        async with asyncio.timeout(10):
            while (await gateway.exchange(*second))[0].HasField("request_headers"):
                await asyncio.sleep(0.001)  # the first has not arrived yet
        (answer,) = await gateway.exchange(*second)
        assert answer.immediate_response.status.code == 429
        first.cancel()
        async with asyncio.timeout(10):
            while (await gateway.exchange(*second))[0].HasField("immediate_response"):
                await asyncio.sleep(0.001)  # until the picker has heard of the end

    run(test, Options(max_held_bytes=100))


def test_bugs_and_slowness_are_answered_and_not_waited_for() -> None:
    async def bug(gateway: Gateway) -> None:
        (answer,) = await gateway.exchange(request_headers(ends=True, **DUPLEX), ends=False)
        assert answer.immediate_response.status.code == 500
        assert b"a bug" not in answer.immediate_response.body

    async def slow(gateway: Gateway) -> None:
        for messages in (
            [request_headers(ends=True, **DUPLEX)],
            [request_headers(**DUPLEX)],
        ):
            (answer,) = await gateway.exchange(*messages, ends=False)
            assert answer.immediate_response.status.code == 408

    run(bug, picking=Failing())
    run(slow, Options(request_timeout_s=0.05), Slow())


def test_messages_out_of_turn_are_an_error_of_the_stream() -> None:
    async def test(gateway: Gateway) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await gateway.exchange(request_body())
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "kvtier_epp_broken_streams_total 1.0" in gateway.meter.render().decode()

    run(test)


def in_duplex(**fields: Any) -> ProcessingRequest:
    return request_headers(response_mode=BodyMode.FULL_DUPLEX, **DUPLEX, **fields)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_streams_are_closed_with_the_choice_also_in_full_duplex(secure: bool) -> None:
    async def test(gateway: Gateway) -> None:
        body = b'{"model": "m", "noise": "' + b"x" * 15_000 + b'"}'
        answers = await gateway.exchange(in_duplex(), request_body(body), ends=False)
        assert echoed(answers) == body
        assert not any(member.endpoint.in_flight for member in gateway.fleet.members)

    run(test, secure=secure)


@pytest.mark.parametrize("observes", [False, True], ids=["too large to close", "observed"])
def test_a_response_that_has_to_be_followed_is_followed_to_its_end(observes: bool) -> None:
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

    run(test, Options(observes=observes))


def test_a_large_answer_is_closed_where_nothing_can_be_lost() -> None:
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


def test_other_responses_are_followed_only_when_asked() -> None:
    head = request_headers(ends=True, response_mode=BodyMode.STREAMED, **DUPLEX)

    async def closes(gateway: Gateway) -> None:
        assert len(await gateway.exchange(head, ends=False)) == 1

    async def follows(gateway: Gateway) -> None:
        assert len(await gateway.exchange(head, response_headers())) == 2

    run(closes)
    run(follows, Options(observes=True))


def test_responses_of_requests_placed_elsewhere_pass() -> None:
    async def test(gateway: Gateway) -> None:
        answers = await gateway.exchange(response_headers(), response_body(b"x", ends=True))
        assert [answer.WhichOneof("response") for answer in answers] == [
            "response_headers",
            "response_body",
        ]

    run(test)


def test_a_gateway_that_only_looks_gets_no_answer() -> None:
    async def test(gateway: Gateway) -> None:
        head = request_headers(**DUPLEX)
        head.observability_mode = True
        assert await gateway.exchange(head, ends=False) == []

    run(test)


def test_health_is_told_on_the_same_port() -> None:
    async def test(gateway: Gateway) -> None:
        request = health_pb2.HealthCheckRequest(
            service="envoy.service.ext_proc.v3.ExternalProcessor"
        )
        answer = await HealthStub(gateway.channel).Check(request)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING

    run(test)


def test_a_port_that_is_taken_is_told() -> None:
    async def test(gateway: Gateway) -> None:
        server = Server(
            Picker(Failing(), Meter(), Options(), observer=lambda choice: None),  # type: ignore[arg-type,return-value]
            Health(),
        )
        with pytest.raises(InvalidSettings, match=f"127.0.0.1:{gateway.port} cannot be listened"):
            server.bind("127.0.0.1", gateway.port, None)
        await server.stop(0, 0)

    run(test)


@settings(max_examples=60)
@given(st.lists(st.lists(MESSAGES, max_size=6), max_size=4))
def test_no_sequence_of_messages_crashes_hangs_or_leaks(
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
