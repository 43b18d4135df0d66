"""Errors that the router returns instead of forwarding a request, in OpenAI's error format.

Invariants: a refusal describes a fault of the request or of the fleet and reveals nothing of the
router's internals; its length is bounded whatever the client sent.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

JSON: Final = "application/json"
_MOST_CHARACTERS: Final = 2000
"""The longest error message, enough for the errors of several replicas."""


_MOST_SHOWN: Final = 100


def shown(text: str, most: int = _MOST_SHOWN) -> str:
    """Return client text for a log or error: escaped, on one line, at most `most` characters."""
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
    """An error response, raised while a request is handled and sent as its response."""

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
        """Return `{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}`."""
        return msgspec.json.encode(_Error(self.detail))


def invalid(message: str, param: str | None = None) -> Refusal:
    """Return a 400: the request is malformed; `param` names the field at fault."""
    return Refusal(400, message, param=param)


def unauthorized() -> Refusal:
    """Return a 401: the API key is missing or unknown."""
    return Refusal(
        401,
        "the API key is missing or unknown; "
        "send it as `Authorization: Bearer KEY` or `x-api-key: KEY`",
        kind="authentication_error",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


def unknown_path(method: str, path: str) -> Refusal:
    """Return a 404: nothing is served at this path."""
    return Refusal(404, f"nothing is served at {method} {path}", code="not_found")


def unknown_model(model: str) -> Refusal:
    """Return a 404: no replica, whether up or down, serves the model."""
    return Refusal(
        404,
        f"the model `{shown(model)}` does not exist; /v1/models lists those that do",
        code="model_not_found",
        param="model",
    )


def too_slow(what: str, seconds: float) -> Refusal:
    """Return a 408: the client did not send `what` within `seconds`."""
    return Refusal(408, f"the {what} did not arrive within {seconds:g} s", code="request_timeout")


def too_large(limit_bytes: int) -> Refusal:
    """Return a 413: the body exceeds the limit."""
    return Refusal(413, f"the body is larger than {limit_bytes} bytes", code="request_too_large")


def upgrade_required() -> Refusal:
    """Return a 426: the path serves WebSockets only."""
    return Refusal(
        426,
        "this path serves a WebSocket; send `Connection: Upgrade` and `Upgrade: websocket`",
        code="upgrade_required",
        headers={"Upgrade": "websocket"},
    )


def overloaded(message: str, retry_after_s: int) -> Refusal:
    """Return a 429: there are replicas for the request, and all are busy."""
    return Refusal(
        429,
        message,
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        headers={"Retry-After": str(retry_after_s)},
    )


def unreachable(message: str) -> Refusal:
    """Return a 502: none of the replicas tried has answered."""
    return Refusal(502, message, kind="upstream_error", code="bad_gateway")


def unavailable(message: str, retry_after_s: int = 1) -> Refusal:
    """Return a 503: no replica can take the request."""
    return Refusal(
        503,
        message,
        kind="overloaded_error",
        code="service_unavailable",
        headers={"Retry-After": str(retry_after_s)},
    )


def late(seconds: float) -> Refusal:
    """Return a 504: the replica accepted the request but did not start to respond in time."""
    return Refusal(
        504,
        f"the replica did not start to respond within {seconds:g} s",
        kind="upstream_error",
        code="gateway_timeout",
    )
