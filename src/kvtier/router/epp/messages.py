"""ProcessingResponse messages, as Envoy wants them.

Invariants: the destination stands in the header and in the dynamic metadata, with the same
value; no piece of a body is over what Envoy takes in one message.
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
"""The header, and the key of the dynamic metadata: `host:port[,host:port...]`, best first."""
SERVED: Final = "x-gateway-destination-endpoint-served"
"""Metadata of a response: who answered."""
SUBSET: Final = "x-gateway-destination-endpoint-subset"
LB: Final = "envoy.lb"
"""The namespace of `DESTINATION` and `SERVED`."""
SUBSET_HINT: Final = "envoy.lb.subset_hint"
"""The namespace of `SUBSET`."""
UPSTREAM_ADDRESS: Final = "upstream.address"
"""The response attribute that plain Envoy says who answered with."""

TEST_SELECTION: Final = "test-epp-endpoint-selection"
"""Of the conformance tests: `ip[,ip...]` that the picker has to pick."""
DROPPED_REASON: Final = "x-llm-d-request-dropped-reason"
REQUEST_ID: Final = "x-request-id"

_MODEL_REWRITE: Final = ("x-llm-d-model-name-rewrite", "x-gateway-model-name-rewrite")
_OBJECTIVE: Final = ("x-llm-d-inference-objective", "x-gateway-inference-objective")
_OWNED_PREFIXES: Final = ("x-gateway-destination-", "x-conformance-test-")

PIECE_BYTES: Final = 62_000
"""Of a body in one message. Envoy takes 64 KiB, with what is around it."""

_USUAL_ROUTES: Final = 1024
_OVERWRITE: Final = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
_NOTHING: Final = HeaderMutation()


def is_owned(name: str) -> bool:
    """Whether a header (in lower case) is the gateway's or ours to set, and no client's."""
    return name.startswith(_OWNED_PREFIXES)


def model_rewrite(headers: Mapping[str, str]) -> str:
    """The model that the gateway wants asked instead; empty: the client's own."""
    return _first(headers, _MODEL_REWRITE)


def objective(headers: Mapping[str, str]) -> str:
    """Name of the request's objective; empty: none."""
    return _first(headers, _OBJECTIVE)


def _first(headers: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((headers[name] for name in names if headers.get(name)), "")


class Route:
    """What the gateway is told of a choice."""

    __slots__ = ("_headers", "_metadata", "_on_headers")

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        add: Mapping[str, str] | None = None,
        remove: Iterable[str] = (),
    ) -> None:
        """`addresses`: the best first, then the fallbacks. Headers to add, and to take away."""
        value = ",".join(addresses)
        headers = [_header(DESTINATION, value)]
        headers += [_header(name, text) for name, text in (add or {}).items()]
        # Gateways remove first, then set. Overwriting may change only the first header of a name,
        # as in older Envoys: so the destination is also in `remove` where a client has sent it.
        self._headers = HeaderMutation(set_headers=headers, remove_headers=list(remove))
        self._metadata = Struct()
        self._metadata.get_or_create_struct(LB)[DESTINATION] = value
        self._on_headers: ProcessingResponse | None = None

    def on_headers(self) -> ProcessingResponse:
        """The answer to the request's headers; the same one each time, not to be changed."""
        if self._on_headers is None:
            common = CommonResponse(header_mutation=self._headers, clear_route_cache=True)
            self._on_headers = ProcessingResponse(
                request_headers=HeadersResponse(response=common), dynamic_metadata=self._metadata
            )
        return self._on_headers

    def on_body(self, replaced: bytes | None) -> ProcessingResponse:
        """The answer to a buffered body; `replaced` is another body in its stead."""
        common = CommonResponse(header_mutation=self._headers, clear_route_cache=True)
        if replaced is not None:
            common.body_mutation.body = replaced
        return ProcessingResponse(
            request_body=BodyResponse(response=common), dynamic_metadata=self._metadata
        )

    def on_trailers(self) -> ProcessingResponse:
        """The answer to trailers that come without a body: headers can no longer be set."""
        return ProcessingResponse(
            request_trailers=TrailersResponse(header_mutation=_NOTHING),
            dynamic_metadata=self._metadata,
        )


def route(addresses: Sequence[str], add: Mapping[str, str], remove: Iterable[str]) -> Route:
    """The same one again where only the addresses differ between choices: most do not."""
    if add or remove:
        return Route(addresses, add=add, remove=remove)
    return _usual(tuple(addresses))


@functools.lru_cache(maxsize=_USUAL_ROUTES)
def _usual(addresses: tuple[str, ...]) -> Route:
    return Route(addresses)


def go_on_headers(remove: Sequence[str]) -> ProcessingResponse:
    """The request's headers may pass without these, and without a route that they led to."""
    common = CommonResponse()
    if remove:
        common.header_mutation.remove_headers.extend(remove)
        common.clear_route_cache = True
    return ProcessingResponse(request_headers=HeadersResponse(response=common))


def request_body() -> ProcessingResponse:
    """A part of the request's body may pass as it is."""
    return ProcessingResponse(request_body=BodyResponse(response=CommonResponse()))


def go_on_trailers() -> ProcessingResponse:
    """The request's trailers may pass."""
    return ProcessingResponse(request_trailers=TrailersResponse(header_mutation=_NOTHING))


def request_pieces(body: bytes, *, ends: bool) -> Iterator[ProcessingResponse]:
    """The request's body given back; `ends`: no trailers follow. At least one message."""
    for piece, is_last in _pieces(body):
        mutation = BodyMutation(
            streamed_response=StreamedBodyResponse(body=piece, end_of_stream=ends and is_last)
        )
        common = CommonResponse(body_mutation=mutation)
        yield ProcessingResponse(request_body=BodyResponse(response=common))


def response_headers(add: Mapping[str, str]) -> ProcessingResponse:
    """The response's headers may pass, and these with them."""
    headers = [_header(name, text) for name, text in add.items()]
    common = CommonResponse(header_mutation=HeaderMutation(set_headers=headers))
    return ProcessingResponse(response_headers=HeadersResponse(response=common))


def response_body() -> ProcessingResponse:
    """A part of the response's body may pass as it is."""
    return ProcessingResponse(response_body=BodyResponse(response=CommonResponse()))


def response_pieces(chunk: bytes, *, ends: bool) -> Iterator[ProcessingResponse]:
    """A part of the response's body given back; `ends`: it is the last."""
    for piece, is_last in _pieces(chunk):
        mutation = BodyMutation(
            streamed_response=StreamedBodyResponse(body=piece, end_of_stream=ends and is_last)
        )
        common = CommonResponse(body_mutation=mutation)
        yield ProcessingResponse(response_body=BodyResponse(response=common))


def response_trailers() -> ProcessingResponse:
    """The response's trailers may pass."""
    return ProcessingResponse(response_trailers=TrailersResponse(header_mutation=_NOTHING))


def refusal(status: int, body: bytes, headers: Mapping[str, str]) -> ProcessingResponse:
    """The gateway answers the client itself; `status` is HTTP's."""
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
    """Each piece and whether it is the last. What fits is passed on, not copied."""
    if len(body) <= PIECE_BYTES:
        yield body, True
        return
    for start in range(0, len(body), PIECE_BYTES):
        yield body[start : start + PIECE_BYTES], start + PIECE_BYTES >= len(body)
