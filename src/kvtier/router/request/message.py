"""HTTP header fields and request bodies as they cross the router.

Header fields are pairs of bytes with lower-case names, in the order received. They are not a
mapping of text because each field is read once and passed on, and values in another encoding must
reach the replica unchanged. The HTTP parser rejects line breaks in a field, so a pair can be
written out as it is.

A body is decoded once and forwarded unchanged. The router reads only the model, a few numbers and
the prompt, so it accepts fields that it does not know, such as those of a newer API. Invariant:
the router reads the same values as the engine: one UTF-8 document, and the last value of a
repeated key, as in Python's JSON reader.
"""

from collections.abc import Mapping
from email.message import Message
from typing import Any, Final

import msgspec

from kvtier.router.request.refusals import Refusal, invalid

_FORM: Final = "multipart/form-data"
_LIMITS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")
"""Names of the output limit in the various APIs; the first one present is used."""
_ENDS_EARLY: Final = "Input data was truncated"
"""The error message of msgspec for a document without its end."""


class RequestBody(msgspec.Struct, frozen=True):
    """The part of a request body that choosing a replica needs."""

    model: str
    fields: Mapping[str, Any] = {}
    """The whole decoded body, from which the prompt is built; empty for a form."""
    max_tokens: int = 0
    """Output tokens that the client allows; 0 if the body does not say."""
    priority: int = 0


Fields = list[tuple[bytes, bytes]]


def first_value(fields: Fields, name: bytes) -> str:
    """Return the first value of the field `name` (lower case), or an empty string."""
    for known, value in fields:
        if known == name:
            return value.decode("latin-1")
    return ""


def encode_fields(fields: Fields) -> bytes:
    """Return the fields as the header lines of an HTTP/1.1 message."""
    return b"".join([b"%b: %b\r\n" % field for field in fields])


_decoder = msgspec.json.Decoder(dict[str, Any])


def parse_body(body: bytes | bytearray, content_type: str) -> RequestBody:
    """Read the model, limits and prompt fields of a body.

    Raises Refusal (400) if the body is not a JSON object or a form, or does not name a model.
    """
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
    """Return a 400 that explains why `body` could not be decoded as a JSON object."""
    if not body or body.isspace():
        return invalid("the body is empty")
    if isinstance(error, UnicodeDecodeError) or "UTF-8" in str(error):
        return invalid("the body is not UTF-8")
    if str(error) == _ENDS_EARLY:
        return invalid("the body is incomplete JSON: its end is missing")
    return invalid(f"the body cannot be read: {error}")


def _model(value: object) -> str:
    if value is None:
        raise invalid('the request names no model; add `"model": "NAME"`', "model")
    if not isinstance(value, str) or not value:
        raise invalid("`model` must be a non-empty string", "model")
    return value


def _number(value: object) -> int:
    """Return an integer field, or 0 for any other value, which the engine is left to reject."""
    return value if isinstance(value, int) and abs(value) < 2**31 else 0


def _form_model(body: bytes | bytearray, content_type: str) -> str:
    """Return the field `model` of a multipart form, the format of audio requests."""
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_param("boundary")
    if not isinstance(boundary, str) or not boundary.isascii():
        raise invalid("the form's Content-Type has no boundary")
    found = []
    for part in body.split(b"--" + boundary.encode()):
        head, separator, content = part.partition(b"\r\n\r\n")
        if separator and b'name="model"' in head and b"filename" not in head:
            found.append(content.removesuffix(b"\r\n"))
    if len(found) > 1:
        raise invalid("the form names more than one model", "model")
    return _model(found[0].decode("utf-8", "replace") if found else None)
