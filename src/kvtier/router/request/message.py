"""A request's body: looked into once, passed on as it came.

Why: choosing needs the model, a few numbers and the prompt; everything else in a body is the
engine's business and may be of next year. Invariant: what is read here is what the engine will
read: one document in UTF-8, and where a key stands twice the last one counts, as in Python's
own reader.
"""

from collections.abc import Mapping
from email.message import Message
from typing import Any, Final

import msgspec

from kvtier.router.request.refusals import Refusal, invalid

_FORM: Final = "multipart/form-data"
_LIMITS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")
"""Of output, as the interfaces call it; the first that is there counts."""
_ENDS_EARLY: Final = "Input data was truncated"
"""As msgspec says it."""


class RequestBody(msgspec.Struct, frozen=True):
    """What choosing needs of a body."""

    model: str
    fields: Mapping[str, Any] = {}
    """All of it, decoded; empty where it is a form. For making a prompt of."""
    max_tokens: int = 0
    """0: not said."""
    priority: int = 0


Fields = list[tuple[bytes, bytes]]


def first_value(fields: Fields, name: bytes) -> str:
    """The first value of that name; empty where there is none."""
    for known, value in fields:
        if known == name:
            return value.decode("latin-1")
    return ""


def encode_fields(fields: Fields) -> bytes:
    """As lines of a message's head."""
    return b"".join([b"%b: %b\r\n" % field for field in fields])


_decoder = msgspec.json.Decoder(dict[str, Any])


def parse_body(body: bytes | bytearray, content_type: str) -> RequestBody:
    """What the body asks for. Raises Refusal (400): not JSON, no model, an absurd number."""
    if content_type.lower().startswith(_FORM):
        return RequestBody(_form_model(body, content_type))
    try:
        fields = _decoder.decode(body)
    except RecursionError:
        raise invalid("the body is nested too deeply") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise unreadable(body, error) from error
    limits = (fields.get(name) for name in _LIMITS)
    limit = next((value for value in limits if value is not None), None)
    return RequestBody(
        _model(fields.get("model")),
        fields,
        max(0, _number(limit)),
        _number(fields.get("priority")),
    )


def unreadable(body: bytes | bytearray, error: Exception) -> Refusal:
    """400: what its reader says of a body that is no JSON object."""
    if not body or body.isspace():
        return invalid("the body is empty")
    if isinstance(error, UnicodeDecodeError) or "UTF-8" in str(error):
        return invalid("the body is not UTF-8")
    if str(error) == _ENDS_EARLY:
        return invalid("the body is no whole JSON: its end is missing")
    return invalid(f"the body cannot be read: {error}")


def _model(value: object) -> str:
    if value is None:
        raise invalid('the request names no model; add `"model": "NAME"`', "model")
    if not isinstance(value, str) or not value:
        raise invalid("`model` has to be a name", "model")
    return value


def _number(value: object) -> int:
    """What is no number is for the engine to complain about."""
    return value if isinstance(value, int) and abs(value) < 2**31 else 0


def _form_model(body: bytes | bytearray, content_type: str) -> str:
    """The field `model` of a form, as audio is sent."""
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_param("boundary")
    if not isinstance(boundary, str) or not boundary.isascii():
        raise invalid("the form names no boundary")
    found = []
    for part in body.split(b"--" + boundary.encode()):
        head, separator, content = part.partition(b"\r\n\r\n")
        if separator and b'name="model"' in head and b"filename" not in head:
            found.append(content.removesuffix(b"\r\n"))
    if len(found) > 1:
        raise invalid("the form names more than one model", "model")
    return _model(found[0].decode("utf-8", "replace") if found else None)
