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


def test_full_duplex_holds_headers_until_body_is_complete() -> None:
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
def test_body_is_given_back_in_pieces_within_envoys_limit(size: int) -> None:
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


def test_trailers_end_request_and_pass() -> None:
    talk = conversation()
    talk.receive(request_headers())
    assert talk.receive(request_body(BODY, ends=False)) == ()
    assert isinstance(talk.receive(request_trailers()), GatewayRequest)
    head, piece, trailers = talk.choose([A])
    assert destination(head) == A
    assert not piece.request_body.response.body_mutation.streamed_response.end_of_stream
    assert trailers.WhichOneof("response") == "request_trailers"


def test_headers_are_answered_at_once_without_body() -> None:
    for message in (request_headers(ends=True), request_headers(mode=BodyMode.NONE)):
        talk = conversation()
        asked = talk.receive(message)
        assert isinstance(asked, GatewayRequest)
        assert asked.is_whole is message.request_headers.end_of_stream
        (answer,) = talk.choose([A])
        assert destination(answer) == A


def test_buffered_body_is_awaited_and_not_given_back() -> None:
    talk = conversation()
    (go_on,) = talk.receive(request_headers(mode=BodyMode.BUFFERED))  # type: ignore[misc]
    assert go_on.WhichOneof("response") == "request_headers"
    assert destination(go_on) is None
    assert isinstance(talk.receive(request_body()), GatewayRequest)
    (answer,) = talk.choose([A])
    assert destination(answer) == A
    assert answer.request_body.response.clear_route_cache
    assert not answer.request_body.response.HasField("body_mutation")


def test_trailers_without_buffered_body_get_metadata() -> None:
    talk = conversation()
    talk.receive(request_headers(mode=BodyMode.BUFFERED))
    assert isinstance(talk.receive(request_trailers()), GatewayRequest)
    (answer,) = talk.choose([A])
    assert destination(answer) == A


@pytest.mark.parametrize("mode", [BodyMode.BUFFERED, BodyMode.BUFFERED_PARTIAL])
@pytest.mark.parametrize("last", [request_body(), request_trailers()], ids=["body", "trailers"])
def test_owned_headers_are_removed_before_buffered_body(
    mode: BodyMode, last: ProcessingRequest
) -> None:
    headers = {**POST, messages.DESTINATION: B, messages.SUBSET: B}
    talk = conversation()
    (go_on,) = talk.receive(request_headers(headers, mode=mode))  # type: ignore[misc]
    common = go_on.request_headers.response
    assert set(common.header_mutation.remove_headers) == {messages.DESTINATION, messages.SUBSET}
    assert common.clear_route_cache, "the removed headers may have selected a route"
    assert isinstance(talk.receive(last), GatewayRequest)
    (answer,) = talk.choose([A])
    assert destination(answer) == A
    removed = answer.request_body.response.header_mutation.remove_headers
    assert not removed, "owned headers are removed only once"


def test_answered_request_is_not_kept() -> None:
    for refuses in (False, True):
        talk = conversation()
        talk.receive(request_headers({"x": "y"}))
        talk.receive(request_body(BODY))
        if refuses:
            talk.refuse(unavailable("nobody"))
        else:
            list(talk.choose([A]))
        assert (talk._headers, talk._body, talk._chunks) == ({}, b"", [])


def test_default_mode_applies_only_without_protocol_config() -> None:
    talk = conversation(BodyMode.BUFFERED)
    assert len(talk.receive(request_headers())) == 1  # type: ignore[arg-type]
    talk = conversation(BodyMode.BUFFERED)
    assert talk.receive(request_headers(mode=BodyMode.FULL_DUPLEX)) == ()
    assert body_mode(5) is BodyMode.FULL_DUPLEX


@pytest.mark.parametrize("mode", [BodyMode.FULL_DUPLEX, BodyMode.BUFFERED])
def test_replaced_body_sets_content_length(mode: BodyMode) -> None:
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


def test_owned_headers_are_ignored_and_removed() -> None:
    headers = {**POST, messages.DESTINATION: B, messages.SUBSET: B, "X-Plain": "1"}
    talk = conversation()
    asked = talk.receive(request_headers(headers, ends=True))
    assert isinstance(asked, GatewayRequest)
    assert asked.headers == {**POST, "x-plain": "1"}
    (answer,) = talk.choose([A])
    mutation = answer.request_headers.response.header_mutation
    assert set(mutation.remove_headers) == {messages.DESTINATION, messages.SUBSET}
    assert destination(answer) == A


def test_body_over_limit_is_refused_before_its_end() -> None:
    talk = conversation(most=10)
    talk.receive(request_headers())
    talk.receive(request_body(b"x" * 10, ends=False))
    with pytest.raises(Refusal) as refused:
        talk.receive(request_body(b"x", ends=False))
    (answer,) = talk.refuse(refused.value, "rejected-invalid")
    assert answer.immediate_response.status.code == 413
    assert talk.is_answered


def test_refusal_is_immediate_response_with_reason() -> None:
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
def test_unexpected_message_ends_conversation(sequence: Sequence[ProcessingRequest]) -> None:
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
def test_no_message_sequence_changes_destination(
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
            assert not chosen, "a request is chosen for only once"
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


def test_missing_subset_hint_allows_all() -> None:
    assert subset_of(Metadata()) is None
    other = Metadata()
    other.filter_metadata[messages.SUBSET_HINT].update({"else": "x"})
    assert subset_of(other) is None
    assert len(Metadata().filter_metadata) == 0


def test_subset_hint_may_be_list_or_string() -> None:
    assert subset_of(hint(["a:1", " b:2 "])) == ("a:1", "b:2")
    assert subset_of(hint("a:1, b:2,")) == ("a:1", "b:2")


def test_unreadable_subset_hint_allows_none() -> None:
    for value in ([], "", 7, None, {"a": 1}, [1, None]):
        assert subset_of(hint(value)) == ()
