"""An answer's beginning as bytes: the router's own answers, and those that it passes on.

Invariant: what a client of HTTP/1.0 gets ends with its connection or after its length; all others
see an end of its own in every answer.
"""

import email.utils
import enum
import http
from typing import Final

import msgspec

from kvtier.clock import wall_s
from kvtier.router.replica.exchange import BODILESS, SWITCHING, Head
from kvtier.router.request.fields import Fields, block
from kvtier.router.request.refusals import JSON, Refusal

_REASONS: Final = {status.value: status.phrase.encode() for status in http.HTTPStatus}


UPGRADE: Final = b"connection: upgrade\r\nupgrade: websocket\r\n"
"""Lines of a head."""


class Framing(enum.Enum):
    """How the end of a body is told."""

    LENGTH = "length"
    CHUNKS = "chunks"
    CONNECTION = "connection"
    """By the end of the connection."""
    NOTHING = "nothing"
    """There is none: the answer ends with its head."""
    UPGRADE = "upgrade"
    """It is no body: both sides go on in WebSocket."""


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
    return method != "HEAD" and status not in BODILESS


def line(status: int, reason: bytes) -> bytes:
    """The first line. Always of version 1.1: it says what the router speaks."""
    return b"HTTP/1.1 %d %b\r\n" % (status, reason or _REASONS.get(status, b""))


def head(response: Response, *, closes: bool) -> bytes:
    """Of an answer whose body follows, or would if the request were no HEAD."""
    ending = b"connection: close\r\n\r\n" if closes else b"\r\n"
    length = b"" if response.status in BODILESS else b"content-length: %d\r\n" % len(response.body)
    return b"".join(
        (line(response.status, response.reason), block(response.fields), length, ending)
    )


def framing(answer: Head, *, is_modern: bool) -> Framing:
    """Of a replica's answer on its way to a client, who may know no chunks."""
    if answer.status == SWITCHING:
        return Framing.UPGRADE
    if not answer.has_body:
        return Framing.NOTHING
    if answer.length is not None:
        return Framing.LENGTH
    return Framing.CHUNKS if is_modern else Framing.CONNECTION


def passed(answer: Head, fields: Fields, framed: Framing, *, closes: bool) -> bytes:
    """The head of a replica's answer, with the fields that the client gets to see."""
    lines = b""
    match framed:
        case Framing.UPGRADE:
            lines, closes = UPGRADE, False
        case Framing.CHUNKS:
            lines = b"transfer-encoding: chunked\r\n"
        case Framing.LENGTH | Framing.NOTHING if not _is_bare(answer):
            lines = b"content-length: %d\r\n" % (answer.length or 0)
    ending = b"connection: close\r\n\r\n" if closes else b"\r\n"
    return b"".join((line(answer.status, answer.reason), block(fields), lines, ending))


def _is_bare(answer: Head) -> bool:
    """Whether it says nothing of a length, not even of what HEAD leaves out."""
    return answer.length is None or answer.status in BODILESS


def _date() -> bytes:
    return email.utils.formatdate(wall_s(), usegmt=True).encode()
