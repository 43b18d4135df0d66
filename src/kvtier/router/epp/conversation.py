"""The ext_proc exchange of one request, as a state machine without I/O.

The gateway sends headers, body and trailers in the mode that it is configured for. The
conversation turns them into one `GatewayRequest`, and the placement that is chosen for it into
the responses. In full duplex the headers are held until the body is complete, because the
destination is known only then.

Invariants: a request is answered for once; what is given back of a body is what came, piece by
piece in order; a message out of turn ends the conversation (`UnexpectedMessage`) and never moves a
request to another destination; headers go on only without those that no client may set.
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
    """How the gateway sends a request's body; numbers as in `ProcessingMode.BodySendMode`."""

    NONE = 0
    STREAMED = 1
    BUFFERED = 2
    BUFFERED_PARTIAL = 3
    FULL_DUPLEX = 4


_BUFFERED: Final = (BodyMode.BUFFERED, BodyMode.BUFFERED_PARTIAL)
_MODES: Final = {mode.value: mode for mode in BodyMode}


def body_mode(number: int) -> BodyMode:
    """Of `ProtocolConfiguration`; those that are not known here are of gRPC's kind, in duplex."""
    return _MODES.get(number, BodyMode.FULL_DUPLEX)


class GatewayRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request as far as the gateway showed it."""

    headers: Mapping[str, str]
    """Names in lower case, pseudo headers too; of those that are ours to set, none."""
    body: bytes = b""
    is_whole: bool = True
    """Whether `body` is all of it: a gateway may be configured to show a part, or nothing."""
    subset: Sequence[str] | None = None
    """Addresses that the gateway allows; None: all."""

    @property
    def method(self) -> str:
        """GET, POST."""
        return self.headers.get(":method", "")

    @property
    def path(self) -> str:
        """Without the query."""
        return self.headers.get(":path", "").partition("?")[0]


class UnexpectedMessage(Exception):
    """The gateway sent what cannot come now."""


class _State(enum.Enum):
    START = enum.auto()
    BODY = enum.auto()
    """Headers are there, body or trailers will come."""
    CHOOSING = enum.auto()
    ANSWERED = enum.auto()
    """The request has its destination; responses may come."""
    REFUSED = enum.auto()


class ExtProcConversation:
    """One stream. Give it each message; when it returns an GatewayRequest, give it the choice."""

    def __init__(self, mode: BodyMode, max_body_bytes: int) -> None:
        """`mode` counts where the gateway does not say how it is configured."""
        self._mode = mode
        self._max_body_bytes = max_body_bytes
        self._state = _State.START
        self._headers: dict[str, str] = {}
        self._owned: list[str] = []
        self._subset: Sequence[str] | None = None
        self._chunks: list[bytes] = []
        self.received_bytes = 0
        """Of the body, so far."""
        self._body = b""
        self._asked_on = ""

    @property
    def is_answered(self) -> bool:
        """Whether the gateway has all it needs to carry on alone."""
        return self._state in (_State.ANSWERED, _State.REFUSED)

    @property
    def gives_back(self) -> bool:
        """Whether the answer has the request's body in it."""
        return self._mode not in _BUFFERED and self._asked_on != "request_headers"

    def receive(self, message: ProcessingRequest) -> GatewayRequest | Sequence[ProcessingResponse]:
        """An GatewayRequest once the request is known, else what to answer now (nothing: wait).

        Raises UnexpectedMessage, and Refusal (413) for a body over the bound: hand it to `refuse`.
        """
        kind = message.WhichOneof("request")
        if kind == "request_headers":
            return self._on_headers(message)
        if kind == "request_body":
            return self._on_body(message)
        if kind == "request_trailers":
            return self._on_trailers()
        raise UnexpectedMessage(f"{kind or 'an empty message'} while the request is not answered")

    def choose(
        self, addresses: Sequence[str], *, body: bytes | None = None, add: Mapping[str, str] = {}
    ) -> Iterable[ProcessingResponse]:
        """The answers for this choice, best address first. `body` goes instead of the client's.

        `add`: headers for the replica.
        """
        assert self._state is _State.CHOOSING, self._state
        assert addresses
        self._state = _State.ANSWERED
        whole, self._body, self._headers = self._body, b"", {}
        if body is not None and self._asked_on != "request_headers":
            add = {**add, "content-length": str(len(body))}
        route = messages.route(addresses, add, self._owned)
        if self._asked_on == "request_headers":
            return (route.on_headers(),)
        if self._mode in _BUFFERED:
            if self._asked_on == "request_trailers":
                return (route.on_trailers(),)
            return (route.on_body(body),)
        return self._duplex(route, whole if body is None else body)

    def refuse(self, refusal: Refusal, reason: str = "") -> Sequence[ProcessingResponse]:
        """The client gets this error, from the gateway."""
        self._state = _State.REFUSED
        self._chunks, self._body, self._headers = [], b"", {}
        headers = {"content-type": "application/json"}
        headers |= {name.lower(): value for name, value in refusal.headers.items()}
        if reason:
            headers[messages.DROPPED_REASON] = reason
        return (messages.refusal(refusal.status, refusal.body(), headers),)

    def _duplex(self, route: messages.Route, body: bytes) -> Iterable[ProcessingResponse]:
        yield route.on_headers()
        ends = self._asked_on == "request_body"
        if body or ends:
            yield from messages.request_pieces(body, ends=ends)
        if not ends:
            yield messages.go_on_trailers()

    def _on_headers(
        self, message: ProcessingRequest
    ) -> GatewayRequest | Sequence[ProcessingResponse]:
        if self._state is not _State.START:
            raise UnexpectedMessage("headers a second time")
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
        # Now or never: the answer to trailers without a body can change no headers.
        owned, self._owned = self._owned, []
        return (messages.go_on_headers(owned),)

    def _on_body(self, message: ProcessingRequest) -> GatewayRequest | Sequence[ProcessingResponse]:
        if self._state is not _State.BODY:
            raise UnexpectedMessage("a body before its headers, or after its end")
        part = message.request_body
        self.received_bytes += len(part.body)
        if self.received_bytes > self._max_body_bytes:
            raise too_large(self._max_body_bytes)
        self._chunks.append(part.body)
        # A buffered body comes in one message; a partial one is not whole, and all there is.
        if part.end_of_stream or self._mode in _BUFFERED:
            is_whole = part.end_of_stream or self._mode is BodyMode.BUFFERED
            return self._ask("request_body", is_whole=is_whole)
        return ()

    def _on_trailers(self) -> GatewayRequest | Sequence[ProcessingResponse]:
        if self._state is not _State.BODY:
            raise UnexpectedMessage("trailers before headers, or after the end")
        return self._ask("request_trailers", is_whole=True)

    def _ask(self, on: str, *, is_whole: bool) -> GatewayRequest:
        self._state = _State.CHOOSING
        self._asked_on = on
        self._body, self._chunks = b"".join(self._chunks), []
        return GatewayRequest(
            headers=self._headers,
            body=self._body,
            is_whole=is_whole,
            subset=self._subset,
        )


def _read(headers: HeaderMap) -> tuple[dict[str, str], list[str]]:
    """The headers, and the names of those that no client may set. The last of a name counts."""
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
    """The addresses allowed, a list or one text with commas; None where there is no hint."""
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
