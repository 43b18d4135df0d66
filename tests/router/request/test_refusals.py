import json

import pytest

from kvtier.router.request import refusals
from kvtier.router.request.refusals import Refusal, shown


@pytest.mark.parametrize(
    ("refusal", "status", "kind", "code"),
    [
        (refusals.invalid("x"), 400, "invalid_request_error", "invalid_request"),
        (refusals.unauthorized(), 401, "authentication_error", "invalid_api_key"),
        (refusals.unknown_path("GET", "/x"), 404, "invalid_request_error", "not_found"),
        (refusals.unknown_model("x"), 404, "invalid_request_error", "model_not_found"),
        (refusals.too_slow("body", 1.0), 408, "invalid_request_error", "request_timeout"),
        (refusals.too_large(1), 413, "invalid_request_error", "request_too_large"),
        (refusals.overloaded("x", 2), 429, "rate_limit_error", "rate_limit_exceeded"),
        (refusals.unreachable("x"), 502, "upstream_error", "bad_gateway"),
        (refusals.unavailable("x"), 503, "overloaded_error", "service_unavailable"),
        (refusals.late(1.0), 504, "upstream_error", "gateway_timeout"),
    ],
)
def test_refusal_body_is_an_openai_error(
    refusal: Refusal, status: int, kind: str, code: str
) -> None:
    error = json.loads(refusal.body())["error"]
    assert (refusal.status, error["type"], error["code"]) == (status, kind, code)
    assert error["message"]
    assert "param" in error


def test_overload_refusals_have_retry_after() -> None:
    assert refusals.overloaded("x", 7).headers["Retry-After"] == "7"
    assert refusals.unavailable("x").headers["Retry-After"] == "1"


def test_refusal_length_is_bounded() -> None:
    long = "x" * 5_000_000
    for refusal in (refusals.unknown_model(long), refusals.unavailable(f"no replica of `{long}`")):
        assert len(refusal.body()) < 3000
    assert "`" + "x" * 100 + "...` does not exist" in str(refusals.unknown_model(long))
    assert r"`m\r\n` does not exist" in str(refusals.unknown_model("m\r\n"))


def test_unauthorized_names_both_headers() -> None:
    message = json.loads(refusals.unauthorized().body())["error"]["message"]
    assert "`Authorization: Bearer KEY`" in message
    assert "`x-api-key: KEY`" in message


def test_unknown_model_names_the_model() -> None:
    error = json.loads(refusals.unknown_model('a"b').body())["error"]
    assert error["param"] == "model"
    assert 'a"b' in error["message"]


@pytest.mark.parametrize("text", ["Qwen/Qwen3-8B:fp8", "modèle", 'a"b', "a'b", ""])
def test_shown_keeps_printable_text(text: str) -> None:
    assert shown(text) == text


def test_shown_escapes_control_characters() -> None:
    assert shown("m\x1b[31m\r\n\ud800") == r"m\x1b[31m\r\n\ud800"


def test_shown_truncates_long_text() -> None:
    assert shown("x" * 100) == "x" * 100
    assert shown("x" * 5_000_000) == "x" * 100 + "..."
    assert shown("abcd", 3) == "abc..."
