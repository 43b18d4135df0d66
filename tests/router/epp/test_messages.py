import pytest

from kvtier.router.epp import messages
from tests.router.epp.protocol import destination, set_headers


def test_route_has_same_destination_in_header_and_metadata() -> None:
    route = messages.Route(["a:1", "b:2"], add={"x": "y"}, remove=["z"])
    for answer in (route.on_headers(), route.on_body(None), route.on_trailers()):
        assert destination(answer) == "a:1,b:2"
    mutation = route.on_headers().request_headers.response.header_mutation
    assert set_headers(mutation) == {messages.DESTINATION: "a:1,b:2", "x": "y"}
    assert list(mutation.remove_headers) == ["z"]
    for option in mutation.set_headers:
        assert option.append_action == option.OVERWRITE_IF_EXISTS_OR_ADD


def test_route_with_only_addresses_is_cached() -> None:
    first = messages.route(["a:1", "b:2"], {}, [])
    assert messages.route(("a:1", "b:2"), {}, []) is first
    assert destination(first.on_headers()) == "a:1,b:2"
    for other in (
        messages.route(["b:2", "a:1"], {}, []),
        messages.route(["a:1", "b:2"], {"x": "y"}, []),
        messages.route(["a:1", "b:2"], {}, ["z"]),
    ):
        assert other.on_headers() != first.on_headers()


def test_pieces_mark_end_on_last_piece() -> None:
    (answer,) = messages.response_pieces(b"abc", ends=False)
    streamed = answer.response_body.response.body_mutation.streamed_response
    assert (streamed.body, streamed.end_of_stream) == (b"abc", False)
    pieces = list(messages.response_pieces(b"x" * (2 * messages.PIECE_BYTES), ends=True))
    ends = [p.response_body.response.body_mutation.streamed_response.end_of_stream for p in pieces]
    assert ends == [False, True]


def test_pass_through_answers_change_nothing() -> None:
    passed = messages.go_on_headers([]).request_headers.response
    assert not passed.HasField("header_mutation")
    assert not passed.clear_route_cache
    assert not messages.request_body().request_body.response.HasField("body_mutation")
    assert not messages.response_body().response_body.response.HasField("body_mutation")
    added = messages.response_headers({"x-session-token": "t"})
    mutation = added.response_headers.response.header_mutation
    assert set_headers(mutation) == {"x-session-token": "t"}


def test_newer_header_generation_takes_precedence() -> None:
    old = {"x-gateway-inference-objective": "old", "x-gateway-model-name-rewrite": "m1"}
    new = {"x-llm-d-inference-objective": "new", "x-llm-d-model-name-rewrite": "m2"}
    assert (messages.objective(old), messages.model_rewrite(old)) == ("old", "m1")
    assert (messages.objective(new), messages.model_rewrite(new)) == ("new", "m2")
    assert messages.objective(old | new) == "new"
    assert messages.objective({}) == messages.model_rewrite({}) == ""


@pytest.mark.parametrize("name", [messages.DESTINATION, messages.SERVED, messages.SUBSET])
def test_destination_headers_are_owned(name: str) -> None:
    assert messages.is_owned(name)
    assert not messages.is_owned("x-gateway-inference-objective")
    assert not messages.is_owned(messages.TEST_SELECTION)
