"""The vocabulary of the endpoint picker protocol: header and metadata names, and response messages.

Both generations of names are read: `x-gateway-*` of the Gateway API Inference Extension, and
`x-llm-d-*` of llm-d's router since 0.8, which take precedence.
Invariants: a header that names a destination is never accepted from a client; the header and the
dynamic metadata always carry the same destination; no piece of a body is larger than what Envoy
accepts in one message.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption
from envoy.service.ext_proc.v3.external_processor_pb2 import (
    BodyMutation,
    BodyResponse,
    CommonResponse,
    HeaderMutation,
    HeadersResponse,
    ImmediateResponse,
    ProcessingResponse,
    StreamedBodyResponse,
    TrailersResponse,
)
from envoy.type.v3.http_status_pb2 import HttpStatus
from google.protobuf.struct_pb2 import Struct

DESTINATION: Final = "x-gateway-destination-endpoint"
"""The header, and the key in the dynamic metadata: `host:port[,host:port...]`, best first."""
SERVED: Final = "x-gateway-destination-endpoint-served"
"""The key in a response's metadata that names the endpoint that answered."""
SUBSET: Final = "x-gateway-destination-endpoint-subset"
LB: Final = "envoy.lb"
"""The metadata namespace of `DESTINATION` and `SERVED`."""
SUBSET_HINT: Final = "envoy.lb.subset_hint"
"""The metadata namespace of `SUBSET`."""
UPSTREAM_ADDRESS: Final = "upstream.address"
"""The response attribute in which plain Envoy names the endpoint that answered."""

TEST_SELECTION: Final = "test-epp-endpoint-selection"
"""The conformance tests' header: `ip[,ip...]` that the picker must pick."""
DROPPED_REASON: Final = "x-llm-d-request-dropped-reason"
REQUEST_ID: Final = "x-request-id"

_MODEL_REWRITE: Final = ("x-llm-d-model-name-rewrite", "x-gateway-model-name-rewrite")
_OBJECTIVE: Final = ("x-llm-d-inference-objective", "x-gateway-inference-objective")
_OWNED_PREFIXES: Final = ("x-gateway-destination-", "x-conformance-test-")

PIECE_BYTES: Final = 62_000
"""Maximum of a body piece in one message. Envoy accepts messages of 64 KiB."""

_CACHED_ROUTES: Final = 1024
_OVERWRITE: Final = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
_NOTHING: Final = HeaderMutation()


def is_owned(name: str) -> bool:
    """Return True if only the gateway or the picker may set this header (in lower case)."""
    return name.startswith(_OWNED_PREFIXES)


def model_rewrite(headers: Mapping[str, str]) -> str:
    """Return the model that the gateway substitutes for the client's; empty if none."""
    return _first(headers, _MODEL_REWRITE)


def objective(headers: Mapping[str, str]) -> str:
    """Return the name of the request's objective; empty if none."""
    return _first(headers, _OBJECTIVE)


def _first(headers: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((headers[name] for name in names if headers.get(name)), "")


class Route:
    """The responses that tell the gateway a request's destination."""

    __slots__ = ("_headers", "_metadata", "_on_headers")

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        add: Mapping[str, str] | None = None,
        remove: Iterable[str] = (),
    ) -> None:
        """`addresses` are the best one, then the fallbacks; `add` and `remove` are headers."""
        value = ",".join(addresses)
        headers = [_header(DESTINATION, value)]
        headers += [_header(name, text) for name, text in (add or {}).items()]
        # Gateways remove headers before they set any. In older Envoys, overwriting changes only the
        # first header of a name, so `remove` includes the destination if a client has sent it.
        self._headers = HeaderMutation(set_headers=headers, remove_headers=list(remove))
        self._metadata = Struct()
        self._metadata.get_or_create_struct(LB)[DESTINATION] = value
        self._on_headers: ProcessingResponse | None = None

    def on_headers(self) -> ProcessingResponse:
        """Return the answer to the request's headers: one shared message, not to be modified."""
        if self._on_headers is None:
            common = CommonResponse(header_mutation=self._headers, clear_route_cache=True)
            self._on_headers = ProcessingResponse(
                request_headers=HeadersResponse(response=common), dynamic_metadata=self._metadata
            )
        return self._on_headers

    def on_body(self, replaced: bytes | None) -> ProcessingResponse:
        """Return the answer to a buffered body, which `replaced` replaces unless it is None."""
        common = CommonResponse(header_mutation=self._headers, clear_route_cache=True)
        if replaced is not None:
            common.body_mutation.body = replaced
        return ProcessingResponse(
            request_body=BodyResponse(response=common), dynamic_metadata=self._metadata
        )

    def on_trailers(self) -> ProcessingResponse:
        """Return the answer to trailers without a body: headers can no longer be set then."""
        return ProcessingResponse(
            request_trailers=TrailersResponse(header_mutation=_NOTHING),
            dynamic_metadata=self._metadata,
        )


def route(addresses: Sequence[str], add: Mapping[str, str], remove: Iterable[str]) -> Route:
    """Return a route; routes that only name addresses are cached, since most repeat."""
    if add or remove:
        return Route(addresses, add=add, remove=remove)
    return _cached_route(tuple(addresses))


@functools.lru_cache(maxsize=_CACHED_ROUTES)
def _cached_route(addresses: tuple[str, ...]) -> Route:
    return Route(addresses)


def go_on_headers(remove: Sequence[str]) -> ProcessingResponse:
    """Return an answer that lets the request's headers pass, except those in `remove`.

    If any are removed, Envoy's cached route, which they may have selected, is cleared.
    """
    common = CommonResponse()
    if remove:
        common.header_mutation.remove_headers.extend(remove)
        common.clear_route_cache = True
    return ProcessingResponse(request_headers=HeadersResponse(response=common))


def request_body() -> ProcessingResponse:
    """Return an answer that lets a part of the request's body pass."""
    return ProcessingResponse(request_body=BodyResponse(response=CommonResponse()))


def go_on_trailers() -> ProcessingResponse:
    """Return an answer that lets the request's trailers pass."""
    return ProcessingResponse(request_trailers=TrailersResponse(header_mutation=_NOTHING))


def request_pieces(body: bytes, *, ends: bool) -> Iterator[ProcessingResponse]:
    """Yield answers that give the request's body back, at least one.

    `ends` is True if no trailers follow.
    """
    for piece, is_last in _pieces(body):
        mutation = BodyMutation(
            streamed_response=StreamedBodyResponse(body=piece, end_of_stream=ends and is_last)
        )
        common = CommonResponse(body_mutation=mutation)
        yield ProcessingResponse(request_body=BodyResponse(response=common))


def response_headers(add: Mapping[str, str]) -> ProcessingResponse:
    """Return an answer that lets the response's headers pass, and adds some."""
    headers = [_header(name, text) for name, text in add.items()]
    common = CommonResponse(header_mutation=HeaderMutation(set_headers=headers))
    return ProcessingResponse(response_headers=HeadersResponse(response=common))


def response_body() -> ProcessingResponse:
    """Return an answer that lets a part of the response's body pass."""
    return ProcessingResponse(response_body=BodyResponse(response=CommonResponse()))


def response_pieces(chunk: bytes, *, ends: bool) -> Iterator[ProcessingResponse]:
    """Yield answers that give a part of the response's body back; `ends` marks the last part."""
    for piece, is_last in _pieces(chunk):
        mutation = BodyMutation(
            streamed_response=StreamedBodyResponse(body=piece, end_of_stream=ends and is_last)
        )
        common = CommonResponse(body_mutation=mutation)
        yield ProcessingResponse(response_body=BodyResponse(response=common))


def response_trailers() -> ProcessingResponse:
    """Return an answer that lets the response's trailers pass."""
    return ProcessingResponse(response_trailers=TrailersResponse(header_mutation=_NOTHING))


def refusal(status: int, body: bytes, headers: Mapping[str, str]) -> ProcessingResponse:
    """Return an answer that makes the gateway respond to the client with this HTTP error."""
    mutation = HeaderMutation(set_headers=[_header(name, value) for name, value in headers.items()])
    return ProcessingResponse(
        immediate_response=ImmediateResponse(
            status=HttpStatus(code=status),
            headers=mutation,
            body=body,
            details=f"endpoint_picker_{status}",
        )
    )


def _header(name: str, value: str) -> HeaderValueOption:
    header = HeaderValue(key=name, raw_value=value.encode())
    return HeaderValueOption(header=header, append_action=_OVERWRITE)


def _pieces(body: bytes) -> Iterator[tuple[bytes, bool]]:
    """Yield each piece, and True with the last; a body that fits into one is not copied."""
    if len(body) <= PIECE_BYTES:
        yield body, True
        return
    for start in range(0, len(body), PIECE_BYTES):
        yield body[start : start + PIECE_BYTES], start + PIECE_BYTES >= len(body)
