from typing import Any

import pytest

from kvtier.clock import VirtualClock
from kvtier.router.epp import messages
from kvtier.router.epp.conversation import BodyMode, UnexpectedMessage
from kvtier.router.epp.observing import ObservedResponse
from tests.router.epp.protocol import (
    request_body,
    request_headers,
    request_trailers,
    response_body,
    response_headers,
    response_trailers,
    set_headers,
)

STREAM = (
    b'data: {"choices": [{"text": "\\"usage\\": {}"}], "usage": null}\n\n',
    b'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tok',
    b'ens": 3, "prompt_tokens_details": {"cached_tokens": 5}}}\n\ndata: [DONE]\n\n',
)


class InFlightRequest:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def answered(self) -> None:
        self.calls.append("answered")

    def end(self) -> None:
        self.calls.append("end")


def response(
    mode: BodyMode,
    clock: VirtualClock | None = None,
    *,
    request_mode: BodyMode = BodyMode.FULL_DUPLEX,
) -> ObservedResponse:
    found = ObservedResponse(clock or VirtualClock(), BodyMode.FULL_DUPLEX)
    found.read_modes(request_headers(mode=request_mode, response_mode=mode))
    return found


def test_full_duplex_response_is_given_back_and_usage_is_read() -> None:
    clock = VirtualClock()
    in_flight = InFlightRequest()
    seen = response(BodyMode.FULL_DUPLEX, clock)
    seen.attach(in_flight, {"x-session-token": "t"})
    (head,) = seen.receive(response_headers("200", "10.0.0.1:8000"))
    assert set_headers(head.response_headers.response.header_mutation) == {"x-session-token": "t"}
    clock.advance(0.25)
    answers: list[Any] = []
    for chunk in STREAM:
        answers += seen.receive(response_body(chunk))
        clock.advance(1)
    assert in_flight.calls == ["answered"]
    bodies = [a.response_body.response.body_mutation.streamed_response.body for a in answers]
    assert b"".join(bodies) == b"".join(STREAM)
    outcome = seen.end()
    assert (outcome.status, outcome.served) == (200, "10.0.0.1:8000")
    assert outcome.first_chunk_s == 0.25
    assert (outcome.prompt_tokens, outcome.cached_tokens, outcome.completion_tokens) == (7, 5, 3)


@pytest.mark.parametrize("mode", [BodyMode.STREAMED, BodyMode.BUFFERED])
def test_other_modes_let_response_pass(mode: BodyMode) -> None:
    seen = response(mode)
    assert not seen.may_lose
    (answer,) = seen.receive(response_body(b"x"))
    assert not answer.response_body.response.HasField("body_mutation")
    (answer,) = seen.receive(response_trailers())
    assert answer.WhichOneof("response") == "response_trailers"


def test_only_full_duplex_response_may_lose_data() -> None:
    assert response(BodyMode.FULL_DUPLEX).may_lose
    assert ObservedResponse(VirtualClock(), BodyMode.FULL_DUPLEX).may_lose  # the mode is unknown
    assert not response(BodyMode.NONE).may_lose


def test_served_endpoint_is_read_from_metadata() -> None:
    message = response_headers("503", "10.0.0.1:1")
    message.metadata_context.filter_metadata[messages.LB].update({messages.SERVED: "10.0.0.2:2"})
    seen = response(BodyMode.NONE)
    seen.receive(message)
    assert (seen.outcome.status, seen.outcome.served) == (503, "10.0.0.2:2")


def test_repeated_end_of_request_is_ignored() -> None:
    assert response(BodyMode.FULL_DUPLEX).receive(request_body()) == []
    with pytest.raises(UnexpectedMessage):
        response(BodyMode.FULL_DUPLEX).receive(request_headers())


@pytest.mark.parametrize(
    "mode", [mode for mode in BodyMode if mode is not BodyMode.FULL_DUPLEX], ids=str
)
def test_rest_of_request_passes_outside_full_duplex(mode: BodyMode) -> None:
    untold = ObservedResponse(VirtualClock(), mode)
    untold.read_modes(request_headers())
    for seen in (response(BodyMode.STREAMED, request_mode=mode), untold):
        (answer,) = seen.receive(request_body())
        assert answer.WhichOneof("response") == "request_body"
        assert not answer.request_body.response.HasField("body_mutation")
        (answer,) = seen.receive(request_trailers())
        assert answer.WhichOneof("response") == "request_trailers"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b'"usage"',
        b'"usage": ',
        b'"usage": [' * 5000,
        b'"usage": {"prompt_tokens": "many", "completion_tokens": -1}',
        b'"usage": {"prompt_tokens": 1e99, "prompt_tokens_details": 7}',
        b'"usage": {"prompt_tokens": ' + b"9" * 9000 + b"}",
        b"\xff\xfe" * 20_000,
    ],
)
def test_any_response_body_is_accepted(body: bytes) -> None:
    seen = response(BodyMode.FULL_DUPLEX)
    seen.receive(response_headers("not a number"))
    seen.receive(response_body(body))
    outcome = seen.end()
    assert (outcome.prompt_tokens, outcome.completion_tokens, outcome.status) == (0, 0, 0)
