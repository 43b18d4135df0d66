from collections.abc import Sequence
from typing import Any

import pytest
from envoy.config.core.v3.base_pb2 import Metadata
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.router.epp import messages
from kvtier.router.epp.conversation import (
    BodyMode,
    ExtProcConversation,
    GatewayRequest,
    UnexpectedMessage,
    body_mode,
    subset_of,
)
from kvtier.router.epp.messages import PIECE_BYTES
from kvtier.router.request.refusals import Refusal, unavailable
from tests.router.epp.protocol import (
    BODY,
    POST,
    destination,
    echoed,
    request_body,
    request_headers,
    request_trailers,
    response_body,
    response_headers,
    response_trailers,
    set_headers,
)

A, B = "10.0.0.1:8000", "[fd00::1]:8000"


def conversation(mode: BodyMode = BodyMode.FULL_DUPLEX, most: int = 1 << 20) -> ExtProcConversation:
    return ExtProcConversation(mode, most)


def test_full_duplex_holds_the_header_until_the_body_is_whole() -> None:
    talk = conversation()
    assert talk.receive(request_headers()) == ()
    assert talk.receive(request_body(BODY[:5], ends=False)) == ()
    asked = talk.receive(request_body(BODY[5:]))
    assert isinstance(asked, GatewayRequest)
    assert (asked.method, asked.path, asked.body) == ("POST", "/v1/completions", BODY)
    assert asked.is_whole
    assert asked.subset is None
    head, *pieces = talk.choose([A, B])
    assert destination(head) == f"{A},{B}"
    assert head.request_headers.response.clear_route_cache
    assert echoed(pieces) == BODY
    last = pieces[-1].request_body.response.body_mutation.streamed_response
    assert last.end_of_stream
    assert talk.is_answered


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 5 * PIECE_BYTES])
def test_bodies_go_back_in_pieces_that_envoy_takes(size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    body = body[:size]
    talk = conversation()
    talk.receive(request_headers())
    talk.receive(request_body(body))
    _, *pieces = talk.choose([A])
    streamed = [piece.request_body.response.body_mutation.streamed_response for piece in pieces]
    assert len(pieces) == max(1, -(-size // PIECE_BYTES))
    assert all(len(piece.body) <= PIECE_BYTES for piece in streamed)
    assert [piece.end_of_stream for piece in streamed] == [False] * (len(pieces) - 1) + [True]
    assert echoed(pieces) == body


def test_trailers_end_the_request_and_are_let_through() -> None:
    talk = conversation()
    talk.receive(request_headers())
    assert talk.receive(request_body(BODY, ends=False)) == ()
    assert isinstance(talk.receive(request_trailers()), GatewayRequest)
    head, piece, trailers = talk.choose([A])
    assert destination(head) == A
    assert not piece.request_body.response.body_mutation.streamed_response.end_of_stream
    assert trailers.WhichOneof("response") == "request_trailers"


def test_headers_alone_are_enough_where_no_body_comes() -> None:
    for message in (request_headers(ends=True), request_headers(mode=BodyMode.NONE)):
        talk = conversation()
        asked = talk.receive(message)
        assert isinstance(asked, GatewayRequest)
        assert asked.is_whole is message.request_headers.end_of_stream
        (answer,) = talk.choose([A])
        assert destination(answer) == A


def test_buffered_bodies_are_waited_for_and_not_given_back() -> None:
    talk = conversation()
    (go_on,) = talk.receive(request_headers(mode=BodyMode.BUFFERED))  # type: ignore[misc]
    assert go_on.WhichOneof("response") == "request_headers"
    assert destination(go_on) is None
    assert isinstance(talk.receive(request_body()), GatewayRequest)
    (answer,) = talk.choose([A])
    assert destination(answer) == A
    assert answer.request_body.response.clear_route_cache
    assert not answer.request_body.response.HasField("body_mutation")


def test_trailers_without_a_buffered_body_get_the_metadata() -> None:
    talk = conversation()
    talk.receive(request_headers(mode=BodyMode.BUFFERED))
    assert isinstance(talk.receive(request_trailers()), GatewayRequest)
    (answer,) = talk.choose([A])
    assert destination(answer) == A


@pytest.mark.parametrize("mode", [BodyMode.BUFFERED, BodyMode.BUFFERED_PARTIAL])
@pytest.mark.parametrize("last", [request_body(), request_trailers()], ids=["body", "trailers"])
def test_before_a_buffered_body_what_only_we_may_set_is_already_taken_away(
    mode: BodyMode, last: ProcessingRequest
) -> None:
    headers = {**POST, messages.DESTINATION: B, messages.SUBSET: B}
    talk = conversation()
    (go_on,) = talk.receive(request_headers(headers, mode=mode))  # type: ignore[misc]
    common = go_on.request_headers.response
    assert set(common.header_mutation.remove_headers) == {messages.DESTINATION, messages.SUBSET}
    assert common.clear_route_cache, "a route may have been found by them"
    assert isinstance(talk.receive(last), GatewayRequest)
    (answer,) = talk.choose([A])
    assert destination(answer) == A
    removed = answer.request_body.response.header_mutation.remove_headers
    assert not removed, "once is enough"


def test_nothing_of_a_request_is_kept_once_it_is_answered() -> None:
    for refuses in (False, True):
        talk = conversation()
        talk.receive(request_headers({"x": "y"}))
        talk.receive(request_body(BODY))
        if refuses:
            talk.refuse(unavailable("nobody"))
        else:
            list(talk.choose([A]))
        assert (talk._headers, talk._body, talk._chunks) == ({}, b"", [])


def test_the_mode_that_is_assumed_counts_only_where_none_is_told() -> None:
    talk = conversation(BodyMode.BUFFERED)
    assert len(talk.receive(request_headers())) == 1  # type: ignore[arg-type]
    talk = conversation(BodyMode.BUFFERED)
    assert talk.receive(request_headers(mode=BodyMode.FULL_DUPLEX)) == ()
    assert body_mode(5) is BodyMode.FULL_DUPLEX


@pytest.mark.parametrize("mode", [BodyMode.FULL_DUPLEX, BodyMode.BUFFERED])
def test_another_body_is_sent_with_its_length(mode: BodyMode) -> None:
    talk = conversation()
    talk.receive(request_headers(mode=mode))
    talk.receive(request_body())
    answers = list(talk.choose([A], body=b"{}"))
    if mode is BodyMode.FULL_DUPLEX:
        assert echoed(answers) == b"{}"
        mutation = answers[0].request_headers.response.header_mutation
    else:
        assert answers[0].request_body.response.body_mutation.body == b"{}"
        mutation = answers[0].request_body.response.header_mutation
    assert set_headers(mutation)["content-length"] == "2"


def test_what_only_we_may_set_is_not_believed_and_taken_away() -> None:
    headers = {**POST, messages.DESTINATION: B, messages.SUBSET: B, "X-Plain": "1"}
    talk = conversation()
    asked = talk.receive(request_headers(headers, ends=True))
    assert isinstance(asked, GatewayRequest)
    assert asked.headers == {**POST, "x-plain": "1"}
    (answer,) = talk.choose([A])
    mutation = answer.request_headers.response.header_mutation
    assert set(mutation.remove_headers) == {messages.DESTINATION, messages.SUBSET}
    assert destination(answer) == A


def test_a_body_over_the_bound_is_refused_before_it_ends() -> None:
    talk = conversation(most=10)
    talk.receive(request_headers())
    talk.receive(request_body(b"x" * 10, ends=False))
    with pytest.raises(Refusal) as refused:
        talk.receive(request_body(b"x", ends=False))
    (answer,) = talk.refuse(refused.value, "rejected-invalid")
    assert answer.immediate_response.status.code == 413
    assert talk.is_answered


def test_a_refusal_is_http_with_a_reason() -> None:
    (answer,) = conversation().refuse(unavailable("nobody"), "rejected-no-endpoints")
    immediate = answer.immediate_response
    assert immediate.status.code == 503
    assert set_headers(immediate.headers) == {
        "content-type": "application/json",
        "retry-after": "1",
        messages.DROPPED_REASON: "rejected-no-endpoints",
    }
    assert b'"service_unavailable"' in immediate.body


@pytest.mark.parametrize(
    "sequence",
    [
        [request_body()],
        [request_trailers()],
        [response_headers()],
        [ProcessingRequest()],
        [request_headers(), request_headers()],
        [request_headers(), response_body(b"x")],
    ],
)
def test_messages_out_of_turn_end_the_conversation(sequence: Sequence[ProcessingRequest]) -> None:
    talk = conversation()
    *before, last = sequence
    for message in before:
        talk.receive(message)
    with pytest.raises(UnexpectedMessage):
        talk.receive(last)


def removed(answer: Any) -> Sequence[str]:
    found: Sequence[str] = answer.request_headers.response.header_mutation.remove_headers
    return found


def _read(raw: bytes) -> ProcessingRequest:
    message = ProcessingRequest()
    try:
        message.ParseFromString(raw)
    except Exception:
        return ProcessingRequest()
    return message


MESSAGES = st.one_of(
    st.builds(
        request_headers,
        st.dictionaries(st.sampled_from([":path", messages.DESTINATION, "x", "X"]), st.text()),
        ends=st.booleans(),
        mode=st.none() | st.sampled_from(BodyMode),
        subset=st.none() | st.lists(st.sampled_from([A, B])) | st.text(),
    ),
    st.builds(request_body, st.binary(max_size=200), ends=st.booleans()),
    st.builds(request_trailers),
    st.builds(response_headers),
    st.builds(response_body, st.binary(max_size=20), ends=st.booleans()),
    st.builds(response_trailers),
    st.just(ProcessingRequest()),
    st.binary(max_size=60).map(_read),
)


@given(st.lists(MESSAGES, max_size=8), st.sampled_from(BodyMode))
def test_whatever_a_gateway_sends_a_request_goes_where_it_was_chosen_to(
    sequence: list[ProcessingRequest], mode: BodyMode
) -> None:
    talk = ExtProcConversation(mode, 300)
    answers: list[Any] = []
    body = b""
    owned: set[str] = set()
    chosen = False
    for message in sequence:
        try:
            got = talk.receive(message)
        except UnexpectedMessage:
            break
        except Refusal as refusal:
            answers += talk.refuse(refusal)
            break
        body += message.request_body.body
        for header in message.request_headers.headers.headers:
            owned |= {header.key.lower()} & {messages.DESTINATION}
        if isinstance(got, GatewayRequest):
            assert not chosen, "a request is asked about once"
            assert got.body == body
            chosen = True
            answers += talk.choose([A])
            break
        answers += got
    if chosen:
        assert owned <= {name for answer in answers for name in removed(answer)}
    destinations = [found for answer in answers if (found := destination(answer))]
    assert destinations == ([A] if chosen else [])
    assert echoed(answers) in (b"", body)
    refused = [a for a in answers if a.WhichOneof("response") == "immediate_response"]
    assert [a.immediate_response.status.code for a in refused] in ([], [413])
    for answer in answers:
        piece = answer.request_body.response.body_mutation.streamed_response
        assert len(piece.body) <= PIECE_BYTES


def hint(value: object) -> Metadata:
    metadata = Metadata()
    metadata.filter_metadata[messages.SUBSET_HINT].update({messages.SUBSET: value})
    return metadata


def test_no_hint_allows_all() -> None:
    assert subset_of(Metadata()) is None
    other = Metadata()
    other.filter_metadata[messages.SUBSET_HINT].update({"else": "x"})
    assert subset_of(other) is None
    assert len(Metadata().filter_metadata) == 0


def test_a_list_and_a_text_are_read() -> None:
    assert subset_of(hint(["a:1", " b:2 "])) == ("a:1", "b:2")
    assert subset_of(hint("a:1, b:2,")) == ("a:1", "b:2")


def test_a_hint_that_cannot_be_read_allows_nobody() -> None:
    for value in ([], "", 7, None, {"a": 1}, [1, None]):
        assert subset_of(hint(value)) == ()
