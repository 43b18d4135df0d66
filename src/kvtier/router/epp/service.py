"""The ext_proc service: each stream of a gateway is one request, and possibly its response.

If possible, a stream is closed as soon as its request has been placed. A gateway whose stream ends
cleanly goes on alone, so that no chunk of the response has to pass through the picker. Where the
gateway shows responses in full duplex, this is safe only if it reads the end together with the
placement, because everything that it sends before it reads the end is lost. In that mode the stream
is closed if both can be sent in one piece; otherwise it stays open and gives the response back. A
picker that stops closes every stream that can be closed safely.
Invariants: every stream is answered once or ends with an error; a stream whose request never
completes, or whose answer is never read, is ended by a timeout; the memory that a stream has taken
is released however it ends, and as soon as its request is refused.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final

import msgspec
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest, ProcessingResponse
from google.protobuf.message import DecodeError

from kvtier.clock import Clock, MonotonicClock
from kvtier.router.epp.conversation import (
    BodyMode,
    ExtProcConversation,
    GatewayRequest,
    UnexpectedMessage,
)
from kvtier.router.epp.h2.calls import Call
from kvtier.router.epp.h2.grpc import GrpcStatus
from kvtier.router.epp.h2.limits import MemoryBudget
from kvtier.router.epp.metering import PickerMeter
from kvtier.router.epp.observing import InFlightRequest, ObservedResponse
from kvtier.router.epp.picking import DropReason, Picking, Placement, RequestDropped
from kvtier.router.request.refusals import Refusal, overloaded, too_slow

_log = logging.getLogger(__name__)

PROCESS: Final = b"/envoy.service.ext_proc.v3.ExternalProcessor/Process"
_WHOLE_BYTES: Final = 16_384
"""The largest body whose answer is built at once; larger ones are built piece by piece, as the
window allows."""
_RETRY_AFTER_S: Final = 1
_TIMEOUT_ANSWER_S: Final = 1.0
"""How long the answer to a request that has timed out may take to be sent."""
_RESPONSES: Final = ("response_headers", "response_body", "response_trailers")


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of the service and its streams."""

    body_mode: BodyMode = BodyMode.FULL_DUPLEX
    """The mode of gateways that do not report their configuration."""
    max_body_bytes: int = 64 << 20
    max_held_bytes: int = 1 << 30
    """Maximum of all headers and bodies together that are being received or given back."""
    request_timeout_s: float = 60.0
    """Timeout for receiving a request, choosing, and sending the answer."""
    observes: bool = False
    """Whether responses are followed wherever the gateway shows them."""


class ExtProcService:
    """What all streams share, and the factory of streams. Belongs to the event loop's thread."""

    def __init__(
        self,
        picking: Picking,
        meter: PickerMeter,
        options: StreamOptions,
        *,
        observer: Callable[[Placement], InFlightRequest],
        clock: Clock | None = None,
    ) -> None:
        """`observer` is called for each request whose response is followed."""
        self._picking = picking
        self.meter = meter
        self.options = options
        self.observer = observer
        self.clock = clock or MonotonicClock()
        self.held = MemoryBudget(options.max_held_bytes)

    def process(self, call: Call) -> "ExtProcStream":
        """Handle a new stream of a gateway."""
        return ExtProcStream(self, call)

    async def choose(self, request: GatewayRequest) -> Placement:
        """Choose the endpoints for a request. Raises RequestDropped, and nothing else."""
        since_s = self.clock.now_s()
        try:
            placement = await self._picking.choose(request)
        except RequestDropped:
            raise
        except Exception as error:
            # A gateway in full duplex has already sent the body and can no longer fail open.
            _log.exception("choosing failed")
            refusal = Refusal(
                500, "the endpoint picker failed", kind="internal_error", code="internal_error"
            )
            raise RequestDropped(refusal, DropReason.FAILED) from error
        self.meter.chosen(self.clock.now_s() - since_s)
        return placement


class ExtProcStream:
    """One stream of a gateway; implements `calls.Handler`."""

    def __init__(self, service: ExtProcService, call: Call) -> None:
        options = service.options
        self._service = service
        self._call = call
        self._conversation = ExtProcConversation(options.body_mode, options.max_body_bytes)
        self._response = ObservedResponse(service.clock, options.body_mode)
        self._receive: Callable[[ProcessingRequest, int], None] = self._begin
        self._held_bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._placement: Placement | None = None
        self._in_flight: InFlightRequest | None = None
        self._is_following = self._is_stopping = False
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(options.request_timeout_s, self._time_out)
        service.meter.opened()

    def receive(self, message: bytes) -> None:
        """Handle the gateway's next message."""
        try:
            self._receive(ProcessingRequest.FromString(message), len(message))
        except (UnexpectedMessage, DecodeError) as error:
            self._service.meter.unexpected_message()
            self._call.end(GrpcStatus.INVALID_ARGUMENT, str(error))

    def half_closed(self) -> None:
        """End the stream: the gateway has."""
        self._call.end()

    def sent(self) -> None:
        """Release the request's memory once its answer has been sent."""
        if self._conversation.is_answered:
            self._timer.cancel()
            self._release_memory()

    def closed(self) -> None:
        """Release everything that the stream holds, and count its outcome."""
        self._timer.cancel()
        self._release_memory()
        if self._task is not None:
            self._task.cancel()
        if self._in_flight is not None and self._placement is not None:
            self._in_flight.end()
            self._service.meter.observed(self._placement, self._response.end())
        self._service.meter.closed()
        del self._receive  # a bound method of this object is a reference cycle

    def out_of_memory(self) -> None:
        """Refuse the request with 429."""
        if not self._conversation.is_answered and not self._is_following:
            self._drop(_too_many_bodies())

    def stopping(self) -> None:
        """Close the stream now, or after the placement, if that loses nothing."""
        self._is_stopping = True
        if self._is_following and not self._response.may_lose:
            self._call.end()

    def _begin(self, message: ProcessingRequest, size: int) -> None:
        if message.observability_mode:
            self._call.end()  # the gateway ignores answers
            return
        self._response.read_modes(message)
        if message.WhichOneof("request") in _RESPONSES:
            # The gateway shows only responses, to requests that were placed elsewhere.
            self._timer.cancel()
            self._follow()
        else:
            self._receive = self._receive_request
        self._receive(message, size)

    def _receive_request(self, message: ProcessingRequest, size: int) -> None:
        try:
            result = self._conversation.receive(message)
            self._hold(size)
        except Refusal as refusal:
            self._refuse(refusal, DropReason.INVALID)
        except RequestDropped as dropped:
            self._drop(dropped)
        else:
            if isinstance(result, GatewayRequest):
                self._call.hold()
                self._task = self._loop.create_task(self._choose(result))
            elif result:
                self._call.send(_written(result))

    async def _choose(self, request: GatewayRequest) -> None:
        try:
            placement = await self._service.choose(request)
            self._task = None
            self._answer(request, placement)
        except RequestDropped as dropped:
            self._task = None
            self._drop(dropped)
        except Exception:
            _log.exception("answering a request failed")
            self._call.abort(GrpcStatus.INTERNAL, "the endpoint picker failed")

    def _answer(self, request: GatewayRequest, placement: Placement) -> None:
        answers = self._conversation.choose(placement.addresses, body=placement.body)
        messages: Iterable[bytes] = _written(answers)
        given_back = request.body if self._conversation.gives_back else b""
        is_small = len(given_back if placement.body is None else placement.body) <= _WHOLE_BYTES
        if is_small:
            messages = whole = list(messages)
        if self._is_stopping or not self._service.options.observes:
            if is_small and self._call.try_finish(whole):
                return
            if not self._response.may_lose:
                self._call.send(messages)
                self._call.end()
                return
        self._placement = placement
        self._in_flight = self._service.observer(placement)
        self._response.attach(self._in_flight, placement.response_headers)
        self._follow()
        self._call.send(messages)
        self._call.release()

    def _follow(self) -> None:
        self._is_following = True
        self._receive = self._receive_response

    def _receive_response(self, message: ProcessingRequest, size: int) -> None:
        del size  # it is not buffered
        if self._is_stopping and not self._response.may_lose:
            self._call.end()
        else:
            self._call.send(_written(self._response.receive(message)))

    def _drop(self, dropped: RequestDropped) -> None:
        self._refuse(dropped.refusal, dropped.reason)

    def _refuse(self, refusal: Refusal, reason: DropReason) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._service.meter.dropped(reason)
        answers = self._conversation.refuse(refusal, reason.value)
        self._release_memory()
        self._call.send(_written(answers))
        self._call.end()

    def _time_out(self) -> None:
        """End a stream whose request, placement or answer has timed out."""
        if self._conversation.is_answered:
            self._call.abort(GrpcStatus.UNAVAILABLE, "the answer was not read in time")
            return
        self._timer = self._loop.call_later(_TIMEOUT_ANSWER_S, self._time_out)
        self._refuse(
            too_slow("request", self._service.options.request_timeout_s), DropReason.INVALID
        )

    def _hold(self, size: int) -> None:
        """Take memory for a message. Raises RequestDropped if there is not enough."""
        if not self._service.held.take(size):
            raise _too_many_bodies()
        self._held_bytes += size

    def _release_memory(self) -> None:
        self._service.held.release(self._held_bytes)
        self._held_bytes = 0


def _too_many_bodies() -> RequestDropped:
    refusal = overloaded("too many request bodies at once; try again later", _RETRY_AFTER_S)
    return RequestDropped(refusal, DropReason.SATURATED)


def _written(answers: Iterable[ProcessingResponse]) -> Iterable[bytes]:
    return (answer.SerializeToString() for answer in answers)
