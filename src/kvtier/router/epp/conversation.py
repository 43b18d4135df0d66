"""The ext_proc exchange of one request, as a state machine without I/O.

The gateway sends headers, body and trailers in the mode that it is configured for. The
conversation turns them into one `GatewayRequest`, and the placement that is chosen for it into
the responses. In full duplex the headers are held until the body is complete, because the
destination is known only then.

Invariants: a request is answered once; a body is given back as it arrived, piece by piece in order;
a message that is not allowed in the current state ends the conversation (`UnexpectedMessage`) and
never changes a destination; headers that no client may set are always removed.
"""

import enum
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec
from envoy.config.core.v3.base_pb2 import HeaderMap, Metadata
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest, ProcessingResponse

from kvtier.router.epp import messages
from kvtier.router.request.refusals import Refusal, too_large


class BodyMode(enum.IntEnum):
    """How the gateway sends a body; the numbers of `ProcessingMode.BodySendMode`."""

    NONE = 0
    STREAMED = 1
    BUFFERED = 2
    BUFFERED_PARTIAL = 3
    FULL_DUPLEX = 4


_BUFFERED: Final = (BodyMode.BUFFERED, BodyMode.BUFFERED_PARTIAL)
_MODES: Final = {mode.value: mode for mode in BodyMode}


def body_mode(number: int) -> BodyMode:
    """Return the mode of this number in `ProtocolConfiguration`.

    Unknown numbers count as full duplex, like the newer GRPC mode.
    """
    return _MODES.get(number, BodyMode.FULL_DUPLEX)


class GatewayRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A client's request, as far as the gateway has shown it."""

    headers: Mapping[str, str]
    """Headers by lower-case name, with pseudo headers and without those that no client may set."""
    body: bytes = b""
    is_whole: bool = True
    """False if the gateway is configured to show only a part of the body, or nothing of it."""
    subset: Sequence[str] | None = None
    """The addresses that the gateway allows; None allows all."""

    @property
    def method(self) -> str:
        """The HTTP method."""
        return self.headers.get(":method", "")

    @property
    def path(self) -> str:
        """The path without its query."""
        return self.headers.get(":path", "").partition("?")[0]


class UnexpectedMessage(Exception):
    """A message that the protocol does not allow in the current state."""


class _State(enum.Enum):
    START = enum.auto()
    BODY = enum.auto()
    """The headers have arrived; a body or trailers follow."""
    CHOOSING = enum.auto()
    ANSWERED = enum.auto()
    """The request has its destination; messages about its response may follow."""
    REFUSED = enum.auto()


class ExtProcConversation:
    """The exchange about one request.

    Call `receive` with each message until it returns a GatewayRequest, then `choose` or `refuse`.
    """

    def __init__(self, mode: BodyMode, max_body_bytes: int) -> None:
        """`mode` applies if the gateway does not report its configuration."""
        self._mode = mode
        self._max_body_bytes = max_body_bytes
        self._state = _State.START
        self._headers: dict[str, str] = {}
        self._owned: list[str] = []
        self._subset: Sequence[str] | None = None
        self._chunks: list[bytes] = []
        self.received_bytes = 0
        """The bytes of the body that have arrived so far."""
        self._body = b""
        self._completed_by = ""
        """The kind of the message that completed the request."""

    @property
    def is_answered(self) -> bool:
        """True once the gateway has everything that it needs to go on alone."""
        return self._state in (_State.ANSWERED, _State.REFUSED)

    @property
    def gives_back(self) -> bool:
        """True if the answer contains the request's body."""
        return self._mode not in _BUFFERED and self._completed_by != "request_headers"

    def receive(self, message: ProcessingRequest) -> GatewayRequest | Sequence[ProcessingResponse]:
        """Return the request once it is complete, and otherwise the answers to this message.

        Raises UnexpectedMessage, and Refusal (413), to be passed to `refuse`, if the body exceeds
        the maximum.
        """
        kind = message.WhichOneof("request")
        if kind == "request_headers":
            return self._on_headers(message)
        if kind == "request_body":
            return self._on_body(message)
        if kind == "request_trailers":
            return self._on_trailers()
        raise UnexpectedMessage(f"{kind or 'an empty message'} before the request was answered")

    def choose(
        self, addresses: Sequence[str], *, body: bytes | None = None, add: Mapping[str, str] = {}
    ) -> Iterable[ProcessingResponse]:
        """Return the answers that send the request to `addresses`, best first.

        `body` replaces the client's body, and `add` are additional headers for the replica.
        """
        assert self._state is _State.CHOOSING, self._state
        assert addresses
        self._state = _State.ANSWERED
        whole, self._body, self._headers = self._body, b"", {}
        if body is not None and self._completed_by != "request_headers":
            add = {**add, "content-length": str(len(body))}
        route = messages.route(addresses, add, self._owned)
        if self._completed_by == "request_headers":
            return (route.on_headers(),)
        if self._mode in _BUFFERED:
            if self._completed_by == "request_trailers":
                return (route.on_trailers(),)
            return (route.on_body(body),)
        return self._duplex(route, whole if body is None else body)

    def refuse(self, refusal: Refusal, reason: str = "") -> Sequence[ProcessingResponse]:
        """Return the answer that makes the gateway send this error to the client."""
        self._state = _State.REFUSED
        self._chunks, self._body, self._headers = [], b"", {}
        headers = {"content-type": "application/json"}
        headers |= {name.lower(): value for name, value in refusal.headers.items()}
        if reason:
            headers[messages.DROPPED_REASON] = reason
        return (messages.refusal(refusal.status, refusal.body(), headers),)

    def _duplex(self, route: messages.Route, body: bytes) -> Iterable[ProcessingResponse]:
        yield route.on_headers()
        ends = self._completed_by == "request_body"
        if body or ends:
            yield from messages.request_pieces(body, ends=ends)
        if not ends:
            yield messages.go_on_trailers()

    def _on_headers(
        self, message: ProcessingRequest
    ) -> GatewayRequest | Sequence[ProcessingResponse]:
        if self._state is not _State.START:
            raise UnexpectedMessage("request_headers more than once")
        if message.HasField("protocol_config"):
            self._mode = body_mode(message.protocol_config.request_body_mode)
        self._subset = subset_of(message.metadata_context)
        self._headers, self._owned = _read(message.request_headers.headers)
        ends = message.request_headers.end_of_stream
        if ends or self._mode in (BodyMode.NONE, BodyMode.STREAMED):
            return self._ask("request_headers", is_whole=ends)
        self._state = _State.BODY
        if self._mode not in _BUFFERED:
            return ()
        # The last chance: the answer to trailers without a body cannot change headers.
        owned, self._owned = self._owned, []
        return (messages.go_on_headers(owned),)

    def _on_body(self, message: ProcessingRequest) -> GatewayRequest | Sequence[ProcessingResponse]:
        if self._state is not _State.BODY:
            raise UnexpectedMessage("request_body before its headers, or after its end")
        part = message.request_body
        self.received_bytes += len(part.body)
        if self.received_bytes > self._max_body_bytes:
            raise too_large(self._max_body_bytes)
        self._chunks.append(part.body)
        # A buffered body comes in one message, even if it is only a part.
        if part.end_of_stream or self._mode in _BUFFERED:
            is_whole = part.end_of_stream or self._mode is BodyMode.BUFFERED
            return self._ask("request_body", is_whole=is_whole)
        return ()

    def _on_trailers(self) -> GatewayRequest | Sequence[ProcessingResponse]:
        if self._state is not _State.BODY:
            raise UnexpectedMessage("request_trailers before headers, or after the end")
        return self._ask("request_trailers", is_whole=True)

    def _ask(self, on: str, *, is_whole: bool) -> GatewayRequest:
        self._state = _State.CHOOSING
        self._completed_by = on
        self._body, self._chunks = b"".join(self._chunks), []
        return GatewayRequest(
            headers=self._headers,
            body=self._body,
            is_whole=is_whole,
            subset=self._subset,
        )


def _read(headers: HeaderMap) -> tuple[dict[str, str], list[str]]:
    """Return the headers, and the names of those that no client may set.

    Of several headers of one name the last counts.
    """
    found: dict[str, str] = {}
    owned: list[str] = []
    for header in headers.headers:
        name = header.key.lower()
        if messages.is_owned(name):
            owned.append(name)
            continue
        raw = header.raw_value
        found[name] = raw.decode("utf-8", "replace") if raw else header.value
    return found, owned


def subset_of(metadata: Metadata) -> Sequence[str] | None:
    """Return the addresses in the gateway's subset hint, or None if there is no hint.

    The hint is a list or a comma-separated string. One that cannot be read allows no address.
    """
    hint = metadata.filter_metadata.get(messages.SUBSET_HINT)
    if hint is None or messages.SUBSET not in hint.fields:
        return None
    value = hint.fields[messages.SUBSET]
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        texts = value.string_value.split(",")
    elif kind == "list_value":
        texts = [item.string_value for item in value.list_value.values]
    else:
        texts = []
    return tuple(stripped for text in texts if (stripped := text.strip()))
