"""What the router answers itself when a request goes nowhere: errors as OpenAI writes them.

Invariants: a refusal names what is wrong with the request, or with the fleet, and nothing of
the router's inside; it stays short, whatever the client wrote.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

JSON: Final = "application/json"
_MOST_CHARACTERS: Final = 2000
"""Of a message: reasons of several replicas fit."""


_MOST_SHOWN: Final = 100


def shown(text: str, most: int = _MOST_SHOWN) -> str:
    """`text`, escaped where it is not printable; its first `most` characters where it is longer."""
    escaped = repr(text[:most])[1:-1]
    return escaped if len(text) <= most else f"{escaped}..."


class _Detail(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str


class _Error(msgspec.Struct, frozen=True):
    error: _Detail


class Refusal(Exception):
    """Raised on the way of a request; becomes its answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str = "invalid_request",
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if len(message) > _MOST_CHARACTERS:
            message = f"{message[:_MOST_CHARACTERS]}..."
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        self.detail = _Detail(message, kind, param, code)

    def body(self) -> bytes:
        """`{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}`."""
        return msgspec.json.encode(_Error(self.detail))


def invalid(message: str, param: str | None = None) -> Refusal:
    """400: the request cannot be understood."""
    return Refusal(400, message, param=param)


def unauthorized() -> Refusal:
    """401: no key, or one that is not known."""
    return Refusal(
        401,
        "the API key is missing or not known; "
        "send it as `Authorization: Bearer KEY` or `x-api-key: KEY`",
        kind="authentication_error",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


def unknown_path(method: str, path: str) -> Refusal:
    """404: nothing is served there."""
    return Refusal(404, f"nothing is served at {method} {path}", code="not_found")


def unknown_model(model: str) -> Refusal:
    """404: no replica serves it, up or down."""
    return Refusal(
        404,
        f"the model `{shown(model)}` does not exist; /v1/models lists those that do",
        code="model_not_found",
        param="model",
    )


def too_slow(what: str, seconds: float) -> Refusal:
    """408: the client did not send it in time."""
    return Refusal(408, f"the {what} did not arrive within {seconds:g} s", code="request_timeout")


def too_large(limit_bytes: int) -> Refusal:
    """413: the body is over the limit."""
    return Refusal(413, f"the body is larger than {limit_bytes} bytes", code="request_too_large")


def upgrade_required() -> Refusal:
    """426: only a WebSocket is served there."""
    return Refusal(
        426,
        "a WebSocket is served there; ask with `Connection: Upgrade` and `Upgrade: websocket`",
        code="upgrade_required",
        headers={"Upgrade": "websocket"},
    )


def overloaded(message: str, retry_after_s: int) -> Refusal:
    """429: replicas are there, and all are busy."""
    return Refusal(
        429,
        message,
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        headers={"Retry-After": str(retry_after_s)},
    )


def unreachable(message: str) -> Refusal:
    """502: the replicas that were tried did not answer."""
    return Refusal(502, message, kind="upstream_error", code="bad_gateway")


def unavailable(message: str, retry_after_s: int = 1) -> Refusal:
    """503: no replica can take the request."""
    return Refusal(
        503,
        message,
        kind="overloaded_error",
        code="service_unavailable",
        headers={"Retry-After": str(retry_after_s)},
    )


def late(seconds: float) -> Refusal:
    """504: the replica took the request and has not begun to answer."""
    return Refusal(
        504,
        f"the replica did not begin to answer within {seconds:g} s",
        kind="upstream_error",
        code="gateway_timeout",
    )
