"""An answer's beginning as bytes: the router's own answers, and those that it passes on.

Invariant: what a client of HTTP/1.0 gets ends with its connection or after its length; all others
see an end of its own in every answer.
"""

import email.utils
import http
from typing import Final

import msgspec

from kvtier.clock import wall_s
from kvtier.router.serving.fields import Fields, block
from kvtier.router.serving.refusals import JSON, Refusal

_REASONS: Final = {status.value: status.phrase.encode() for status in http.HTTPStatus}
_BODILESS: Final = (204, 304)


class Response(msgspec.Struct):
    """A whole answer."""

    status: int
    body: bytes = b""
    fields: Fields = []
    reason: bytes = b""


def of_kind(body: bytes, kind: str = JSON, status: int = 200) -> Response:
    """The router's own."""
    fields = [(b"content-type", kind.encode()), (b"date", _date())]
    return Response(status, body, fields)


def of_refusal(refusal: Refusal) -> Response:
    """As the client sees it."""
    made = of_kind(refusal.body(), status=refusal.status)
    made.fields += [
        (name.lower().encode(), value.encode("latin-1", "replace"))
        for name, value in refusal.headers.items()
    ]
    return made


def has_body(method: str, status: int) -> bool:
    """Whether the answer to such a request may have one."""
    return method != "HEAD" and status not in _BODILESS


def line(status: int, reason: bytes) -> bytes:
    """The first line. Always of version 1.1: it says what the router speaks."""
    return b"HTTP/1.1 %d %b\r\n" % (status, reason or _REASONS.get(status, b""))


def head(response: Response, *, closes: bool) -> bytes:
    """Of an answer whose body follows, or would if the request were no HEAD."""
    ending = b"connection: close\r\n\r\n" if closes else b"\r\n"
    length = b"" if response.status in _BODILESS else b"content-length: %d\r\n" % len(response.body)
    return b"".join(
        (line(response.status, response.reason), block(response.fields), length, ending)
    )


def _date() -> bytes:
    return email.utils.formatdate(wall_s(), usegmt=True).encode()
