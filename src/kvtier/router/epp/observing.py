"""What becomes of a request, where the gateway is asked to show the response as well.

Every chunk that crosses the gateway and the picker costs both of them, so that responses are
followed only where somebody wants it, or where closing the stream could lose some (`may_lose`).
Invariants: what comes is given back as it came and at once; whatever a replica writes, only
counts are read from it.
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
"""Of a response, kept to find its usage: engines write it last."""
_USAGE: Final = b'"usage"'
_MOST_TOKENS: Final = 2**31


class ResponseOutcome(msgspec.Struct, kw_only=True):
    """Of one response, as far as it was seen."""

    status: int = 0
    """HTTP's; 0: no response was seen."""
    served: str = ""
    """Address of who answered; empty: the gateway did not say."""
    first_chunk_s: float | None = None
    """From the choice to the first byte of the body."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


class InFlightRequest(Protocol):
    """A request at its endpoint; `end` is called once, however it ends."""

    def answered(self) -> None:
        """The first byte of the answer's body."""
        ...

    def end(self) -> None:
        """The response has ended, or nobody waits for it any more."""
        ...


class ObservedResponse:
    """One response. Give it each message after the choice; `outcome` grows."""

    def __init__(self, clock: Clock, request_mode: BodyMode) -> None:
        """`request_mode`: of the request's body, where the gateway does not say it."""
        self._clock = clock
        self._stay: InFlightRequest | None = None
        self._since_s = clock.now_s()
        self._request_mode = request_mode
        self._mode = BodyMode.NONE
        self._is_mode_known = False
        self._tail = b""
        self._add: Mapping[str, str] = {}
        self.outcome = ResponseOutcome()

    def follows(self, stay: InFlightRequest, add: Mapping[str, str]) -> None:
        """It is the answer to this request; `add`: headers for the client."""
        self._stay = stay
        self._add = add

    def told(self, message: ProcessingRequest) -> None:
        """The first message of a stream says in which mode bodies come."""
        if message.HasField("protocol_config"):
            self._is_mode_known = True
            self._request_mode = body_mode(message.protocol_config.request_body_mode)
            self._mode = body_mode(message.protocol_config.response_body_mode)

    @property
    def may_lose(self) -> bool:
        """Whether what the gateway has sent is lost if the stream is closed then."""
        return not self._is_mode_known or self._mode is BodyMode.FULL_DUPLEX

    def receive(self, message: ProcessingRequest) -> list[ProcessingResponse]:
        """The answers. Raises UnexpectedMessage."""
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
        """No message comes any more."""
        usage = _usage_of(self._tail)
        details = usage.get("prompt_tokens_details")
        outcome = self.outcome
        outcome.prompt_tokens = _count(usage.get("prompt_tokens"))
        outcome.completion_tokens = _count(usage.get("completion_tokens"))
        if isinstance(details, dict):
            outcome.cached_tokens = _count(details.get("cached_tokens"))
        return outcome

    def _on_rest(self, kind: str) -> list[ProcessingResponse]:
        """Of the request: what the choice did not wait for."""
        if self._request_mode is BodyMode.FULL_DUPLEX:
            return []  # Envoy since 1.35 may send the last part of a large body twice
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
                if self._stay is not None:
                    self._stay.answered()
            self._tail = (self._tail + part.body)[-_TAIL_BYTES:]
        if self._mode is BodyMode.FULL_DUPLEX or not self._is_mode_known:
            return list(messages.response_pieces(part.body, ends=part.end_of_stream))
        return [messages.response_body()]


def _served(message: ProcessingRequest) -> str:
    """As conforming gateways say it, or as plain Envoy does."""
    told = message.metadata_context.filter_metadata.get(messages.LB)
    if told is not None and messages.SERVED in told.fields:
        return told.fields[messages.SERVED].string_value
    for attributes in message.attributes.values():
        if messages.UPSTREAM_ADDRESS in attributes.fields:
            return attributes.fields[messages.UPSTREAM_ADDRESS].string_value
    return ""


def _usage_of(tail: bytes) -> dict[str, Any]:
    """The last `usage` object in it; empty where there is none."""
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
    return value if isinstance(value, int) and 0 <= value < _MOST_TOKENS else 0
