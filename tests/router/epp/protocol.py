"""Builders and readers of ext_proc messages."""

from collections.abc import Mapping, Sequence
from typing import Any

from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue
from envoy.service.ext_proc.v3.external_processor_pb2 import (
    HttpBody,
    HttpHeaders,
    HttpTrailers,
    ProcessingRequest,
    ProtocolConfiguration,
)

from kvtier.router.epp import messages
from kvtier.router.epp.conversation import BodyMode

POST = {":method": "POST", ":path": "/v1/completions?x=1", "content-type": "application/json"}
BODY = b'{"model": "m", "prompt": "hello"}'


def header_map(headers: Mapping[str, str]) -> HeaderMap:
    return HeaderMap(
        headers=[HeaderValue(key=key, raw_value=value.encode()) for key, value in headers.items()]
    )


def request_headers(
    headers: Mapping[str, str] = POST,
    *,
    ends: bool = False,
    mode: BodyMode | None = None,
    response_mode: BodyMode = BodyMode.NONE,
    subset: Sequence[str] | str | None = None,
) -> ProcessingRequest:
    message = ProcessingRequest(
        request_headers=HttpHeaders(headers=header_map(headers), end_of_stream=ends)
    )
    if mode is not None:
        message.protocol_config.CopyFrom(
            ProtocolConfiguration(request_body_mode=mode, response_body_mode=response_mode)
        )
    if subset is not None:
        hint = message.metadata_context.filter_metadata[messages.SUBSET_HINT]
        hint.update({messages.SUBSET: subset if isinstance(subset, str) else list(subset)})
    return message


def request_body(body: bytes = BODY, *, ends: bool = True) -> ProcessingRequest:
    return ProcessingRequest(request_body=HttpBody(body=body, end_of_stream=ends))


def request_trailers() -> ProcessingRequest:
    return ProcessingRequest(request_trailers=HttpTrailers())


def response_headers(status: str = "200", attributes: str | None = None) -> ProcessingRequest:
    message = ProcessingRequest(
        response_headers=HttpHeaders(headers=header_map({":status": status}))
    )
    if attributes is not None:
        message.attributes["envoy.filters.http.ext_proc"].update(
            {messages.UPSTREAM_ADDRESS: attributes}
        )
    return message


def response_body(body: bytes, *, ends: bool = False) -> ProcessingRequest:
    return ProcessingRequest(response_body=HttpBody(body=body, end_of_stream=ends))


def response_trailers() -> ProcessingRequest:
    return ProcessingRequest(response_trailers=HttpTrailers())


def set_headers(mutation: Any) -> dict[str, str]:
    return {item.header.key: item.header.raw_value.decode() for item in mutation.set_headers}


def destination(answer: Any) -> str | None:
    """Return the destination in the header, and check that the metadata has the same."""
    kind = answer.WhichOneof("response")
    inner = getattr(answer, kind)
    if kind in ("request_headers", "request_body"):
        found = set_headers(inner.response.header_mutation).get(messages.DESTINATION)
    else:
        found = None
    told = None
    if answer.HasField("dynamic_metadata"):
        told = answer.dynamic_metadata[messages.LB][messages.DESTINATION]
    if kind == "request_trailers":
        return told
    assert found == told
    return found


def echoed(answers: Any) -> bytes:
    """Return the request's body as it was given back."""
    return b"".join(
        answer.request_body.response.body_mutation.streamed_response.body
        for answer in answers
        if answer.WhichOneof("response") == "request_body"
    )
