"""One stream after the other over real gRPC: what is closed, what is followed, what is an error."""

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest
from envoy.service.ext_proc.v3.external_processor_pb2_grpc import ExternalProcessorStub
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.router.extproc.conversation import BodyMode
from kvtier.router.extproc.options import Options
from kvtier.router.extproc.server import PROCESS
from tests.router.extproc.fleets import ADDRESSES
from tests.router.extproc.gateways import BROKEN_OFF, DUPLEX, Gateway, run
from tests.router.extproc.protocol import (
    destination,
    echoed,
    request_body,
    request_headers,
    response_body,
    response_headers,
)
from tests.router.extproc.test_conversation import MESSAGES


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


def test_what_is_no_message_is_an_error_of_the_stream() -> None:
    async def test(gateway: Gateway) -> None:
        call = gateway.channel.stream_stream(PROCESS.decode())()
        await call.write(b"\xff\xff\xff")
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        await gateway.settled()
        assert "kvtier_epp_broken_streams_total 1.0" in gateway.meter.render().decode()

    run(test)


def test_an_answer_that_nobody_reads_is_cut_and_what_it_held_given_back() -> None:
    async def test(gateway: Gateway) -> None:
        call = ExternalProcessorStub(gateway.channel).Process()
        await call.write(request_headers(**DUPLEX))
        await call.write(request_body(b'{"model": "m", "noise": "' + b"x" * 12_000_000 + b'"}'))
        async with asyncio.timeout(20):
            while gateway.meter.open_streams:
                await asyncio.sleep(0.01)
        assert gateway.held.taken_bytes == 0
        call.cancel()

    run(test, Options(request_timeout_s=2.0))


def test_gateways_that_go_away_leave_nothing_behind() -> None:
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


def test_a_deadline_of_the_gateway_ends_the_stream() -> None:
    async def test(gateway: Gateway) -> None:
        call = ExternalProcessorStub(gateway.channel).Process(timeout=0.05)
        await call.write(request_headers(**DUPLEX))
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await gateway.settled()

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
