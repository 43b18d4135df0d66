import pytest

from kvtier.router.replica.exchange import Head
from kvtier.router.request.refusals import overloaded
from kvtier.router.route.response import (
    Framing,
    HttpResponse,
    framing,
    has_body,
    head,
    of_kind,
    of_refusal,
    passed,
)


def test_response_of_router_has_type_and_date() -> None:
    answer = of_kind(b"{}")
    assert dict(answer.fields)[b"content-type"] == b"application/json"
    assert dict(answer.fields)[b"date"].endswith(b" GMT")
    text = head(HttpResponse(200, b"abc", [(b"a", b"b")]), closes=False)
    assert text == b"HTTP/1.1 200 OK\r\na: b\r\ncontent-length: 3\r\n\r\n"
    assert head(HttpResponse(200), closes=True).endswith(b"connection: close\r\n\r\n")
    assert head(HttpResponse(299, reason=b"So so"), closes=False).startswith(
        b"HTTP/1.1 299 So so\r\n"
    )
    assert b"content-length" not in head(HttpResponse(204), closes=False)


def test_response_of_refusal_keeps_its_headers() -> None:
    answer = of_refusal(overloaded("busy", 7))
    assert answer.status == 429
    assert dict(answer.fields)[b"retry-after"] == b"7"
    assert b'"rate_limit_exceeded"' in answer.body


@pytest.mark.parametrize(
    ("method", "status", "expected"),
    [("GET", 200, True), ("HEAD", 200, False), ("GET", 204, False), ("POST", 304, False)],
)
def test_has_body_depends_on_method_and_status(method: str, status: int, expected: bool) -> None:
    assert has_body(method, status) is expected


@pytest.mark.parametrize(
    ("answer", "is_modern", "framed", "line"),
    [
        (Head(200, b"", [], 5), True, Framing.LENGTH, b"content-length: 5\r\n"),
        (Head(200, b"", [], 0), False, Framing.LENGTH, b"content-length: 0\r\n"),
        (Head(200, b"", [], None), True, Framing.CHUNKS, b"transfer-encoding: chunked\r\n"),
        (Head(200, b"", [], None), False, Framing.CONNECTION, b""),
        (Head(101, b"", [], None), True, Framing.UPGRADE, b"connection: upgrade\r\n"),
        (Head(200, b"", [], 5, False), True, Framing.NOTHING, b"content-length: 5\r\n"),
        (Head(200, b"", [], None, False), False, Framing.NOTHING, b""),
    ],
)
def test_framing_depends_on_answer_and_http_version(
    answer: Head, is_modern: bool, framed: Framing, line: bytes
) -> None:
    assert framing(answer, is_modern=is_modern) is framed
    text = passed(answer, [(b"a", b"b")], framed, closes=False)
    assert text.startswith(b"HTTP/1.1 %d " % answer.status)
    assert line in text
    assert b"connection: close" not in text
    closing = passed(answer, [], framed, closes=True)
    assert (b"connection: close" in closing) is (framed is not Framing.UPGRADE)


@pytest.mark.parametrize(
    "answer",
    [Head(200, b"", [], None, False), Head(204, b"", [], 0, False), Head(304, b"", [], 5, False)],
)
def test_passed_head_without_body_has_no_framing_headers(answer: Head) -> None:
    framed = framing(answer, is_modern=True)
    text = passed(answer, [(b"a", b"b")], framed, closes=False)
    assert text.endswith(b"\r\na: b\r\n\r\n")
