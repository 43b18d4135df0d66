"""Following the response to a request, where the gateway shows it to the picker.

Every chunk that passes through the picker costs CPU time there and in the gateway. Responses are
therefore followed only on request (`--observe-responses`), or where closing the stream could lose
part of them (`may_lose`).
Invariants: a response is given back unchanged and at once; nothing but counts is read from it.
"""

import json
from collections.abc import Mapping
from typing import Any, Final, Protocol

import msgspec
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest, ProcessingResponse

from kvtier.clock import Clock
from kvtier.router.epp import messages
from kvtier.router.epp.conversation import BodyMode, UnexpectedMessage, body_mode

_TAIL_BYTES: Final = 16 * 1024
"""How much of a response's end is kept to find its usage, which engines write last."""
_USAGE: Final = b'"usage"'
_MAX_TOKENS: Final = 2**31


class ResponseOutcome(msgspec.Struct, kw_only=True):
    """What is known about one response when it has ended."""

    status: int = 0
    """The HTTP status; 0 if no response was seen."""
    served: str = ""
    """The address of the endpoint that answered; empty if the gateway did not name it."""
    first_chunk_s: float | None = None
    """Time from the placement to the first byte of the body."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


class InFlightRequest(Protocol):
    """A request that counts in its endpoint's load until `end` is called, exactly once."""

    def answered(self) -> None:
        """Note that the first byte of the response's body has arrived."""
        ...

    def end(self) -> None:
        """Note that the response has ended or was abandoned."""
        ...


class ObservedResponse:
    """One response that is followed: call `receive` with each message, and `end` at the end."""

    def __init__(self, clock: Clock, request_mode: BodyMode) -> None:
        """`request_mode` applies to the request's body if the gateway does not report its mode."""
        self._clock = clock
        self._in_flight: InFlightRequest | None = None
        self._since_s = clock.now_s()
        self._request_mode = request_mode
        self._mode = BodyMode.NONE
        self._is_mode_known = False
        self._tail = b""
        self._add: Mapping[str, str] = {}
        self.outcome = ResponseOutcome()

    def attach(self, in_flight: InFlightRequest, add: Mapping[str, str]) -> None:
        """Set the request that this response answers, and the headers to add for the client."""
        self._in_flight = in_flight
        self._add = add

    def read_modes(self, message: ProcessingRequest) -> None:
        """Read the gateway's body modes from the first message of its stream."""
        if message.HasField("protocol_config"):
            self._is_mode_known = True
            self._request_mode = body_mode(message.protocol_config.request_body_mode)
            self._mode = body_mode(message.protocol_config.response_body_mode)

    @property
    def may_lose(self) -> bool:
        """True if closing the stream loses the parts that the gateway has already sent."""
        return not self._is_mode_known or self._mode is BodyMode.FULL_DUPLEX

    def receive(self, message: ProcessingRequest) -> list[ProcessingResponse]:
        """Return the answers to a message. Raises UnexpectedMessage."""
        kind = message.WhichOneof("request")
        if kind == "response_headers":
            self._on_headers(message)
            return [messages.response_headers(self._add)]
        if kind == "response_body":
            return self._on_body(message)
        if kind == "response_trailers":
            return [messages.response_trailers()]
        if kind in ("request_body", "request_trailers"):
            return self._on_rest(kind)
        raise UnexpectedMessage(f"{kind or 'an empty message'} after the request was answered")

    def end(self) -> ResponseOutcome:
        """Return the outcome; no message follows."""
        usage = _usage_of(self._tail)
        details = usage.get("prompt_tokens_details")
        outcome = self.outcome
        outcome.prompt_tokens = _count(usage.get("prompt_tokens"))
        outcome.completion_tokens = _count(usage.get("completion_tokens"))
        if isinstance(details, dict):
            outcome.cached_tokens = _count(details.get("cached_tokens"))
        return outcome

    def _on_rest(self, kind: str) -> list[ProcessingResponse]:
        """Return the answers to parts of the request that arrive after the placement."""
        if self._request_mode is BodyMode.FULL_DUPLEX:
            return []  # since 1.35, Envoy may send the last part of a large body twice
        if kind == "request_body":
            return [messages.request_body()]
        return [messages.go_on_trailers()]

    def _on_headers(self, message: ProcessingRequest) -> None:
        for header in message.response_headers.headers.headers:
            if header.key == ":status":
                text = header.raw_value.decode("ascii", "replace") or header.value
                self.outcome.status = int(text) if text.isascii() and text.isdigit() else 0
        self.outcome.served = _served(message)

    def _on_body(self, message: ProcessingRequest) -> list[ProcessingResponse]:
        part = message.response_body
        if part.body:
            if self.outcome.first_chunk_s is None:
                self.outcome.first_chunk_s = self._clock.now_s() - self._since_s
                if self._in_flight is not None:
                    self._in_flight.answered()
            self._tail = (self._tail + part.body)[-_TAIL_BYTES:]
        if self._mode is BodyMode.FULL_DUPLEX or not self._is_mode_known:
            return list(messages.response_pieces(part.body, ends=part.end_of_stream))
        return [messages.response_body()]


def _served(message: ProcessingRequest) -> str:
    """Return the endpoint that answered, as conforming gateways or plain Envoy report it."""
    context = message.metadata_context.filter_metadata.get(messages.LB)
    if context is not None and messages.SERVED in context.fields:
        return context.fields[messages.SERVED].string_value
    for attributes in message.attributes.values():
        if messages.UPSTREAM_ADDRESS in attributes.fields:
            return attributes.fields[messages.UPSTREAM_ADDRESS].string_value
    return ""


def _usage_of(tail: bytes) -> dict[str, Any]:
    """Return the last `usage` object in the tail of a response; empty if there is none."""
    at = tail.rfind(_USAGE)
    while at >= 0:
        after = tail[at + len(_USAGE) :].lstrip()
        if after.startswith(b":"):
            text = after[1:].decode("utf-8", "replace").lstrip()
            try:
                found = json.JSONDecoder().raw_decode(text)[0]
            except (ValueError, RecursionError):
                found = None
            if isinstance(found, dict):
                return found
        at = tail.rfind(_USAGE, 0, at)
    return {}


def _count(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value < _MAX_TOKENS else 0
