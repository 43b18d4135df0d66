"""One stream of a gateway: a request is answered for, and the response followed if that is wanted.

Why it closes after the choice: a gateway whose stream ends cleanly proceeds without asking again,
so that no chunk of a response crosses it and the picker. Where the gateway streams responses in
full duplex, that is safe only if it reads the end together with the choice: what it has sent by the
time it reads of the end is lost. So there it closes if both go out as one, and gives everything
back if not. A picker that goes away closes whatever can be closed so.
Invariants: every stream is answered for once or ends with an error; a stream that nobody
finishes, or whose answer nobody reads, ends in time; bytes that are held are given back however
it ends, and as soon as a request is refused.
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
"""Of a body: with a larger one the answer is made piece by piece, as there is room."""
_RETRY_AFTER_S: Final = 1
_LAST_WORD_S: Final = 1.0
"""For a request that took too long, to hear of it."""
_RESPONSES: Final = ("response_headers", "response_body", "response_trailers")


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Of every stream."""

    body_mode: BodyMode = BodyMode.FULL_DUPLEX
    """Of gateways that do not say how they are configured."""
    max_body_bytes: int = 64 << 20
    max_held_bytes: int = 1 << 30
    """Of all bodies that are being received, chosen for or given back."""
    request_timeout_s: float = 60.0
    """For the whole of a request, its choice, and the answer to it."""
    observes: bool = False
    """Responses, wherever the gateway shows them."""


class ExtProcService:
    """Meets exchange.Desk. Belongs to the event loop's thread."""

    def __init__(
        self,
        picking: Picking,
        meter: PickerMeter,
        options: StreamOptions,
        *,
        observer: Callable[[Placement], InFlightRequest],
        clock: Clock | None = None,
    ) -> None:
        """`observer` is called for requests whose response is followed."""
        self._picking = picking
        self.meter = meter
        self.options = options
        self.observer = observer
        self.clock = clock or MonotonicClock()
        self.held = MemoryBudget(options.max_held_bytes)

    def process(self, call: Call) -> "ExtProcStream":
        """A gateway has begun a stream."""
        return ExtProcStream(self, call)

    async def choose(self, asked: GatewayRequest) -> Placement:
        """See Desk."""
        since_s = self.clock.now_s()
        try:
            choice = await self._picking.choose(asked)
        except RequestDropped:
            raise
        except Exception as error:
            # A gateway in full duplex has sent the body and cannot fail open any more.
            _log.exception("choosing failed")
            refusal = Refusal(
                500, "the endpoint picker failed", kind="internal_error", code="internal_error"
            )
            raise RequestDropped(refusal, DropReason.FAILED) from error
        self.meter.chosen(self.clock.now_s() - since_s)
        return choice


class ExtProcStream:
    """Meets calls.Handler."""

    def __init__(self, service: ExtProcService, call: Call) -> None:
        options = service.options
        self._service = service
        self._call = call
        self._conversation = ExtProcConversation(options.body_mode, options.max_body_bytes)
        self._response = ObservedResponse(service.clock, options.body_mode)
        self._take: Callable[[ProcessingRequest, int], None] = self._begin
        self._held_bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._choice: Placement | None = None
        self._stay: InFlightRequest | None = None
        self._is_following = self._is_stopping = False
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(options.request_timeout_s, self._give_up)
        service.meter.opened()

    def receive(self, message: bytes) -> None:
        """See Handler."""
        try:
            self._take(ProcessingRequest.FromString(message), len(message))
        except (UnexpectedMessage, DecodeError) as error:
            self._service.meter.out_of_turn()
            self._call.end(GrpcStatus.INVALID_ARGUMENT, str(error))

    def half_closed(self) -> None:
        """See Handler."""
        self._call.end()

    def sent(self) -> None:
        """See Handler."""
        if self._conversation.is_answered:
            self._timer.cancel()
            self._let_go()

    def closed(self) -> None:
        """See Handler."""
        self._timer.cancel()
        self._let_go()
        if self._task is not None:
            self._task.cancel()
        if self._stay is not None and self._choice is not None:
            self._stay.end()
            self._service.meter.observed(self._choice, self._response.end())
        self._service.meter.closed()
        del self._take  # a bound method of our own is a cycle, and nothing is called after this

    def out_of_memory(self) -> None:
        """See Handler."""
        if not self._conversation.is_answered and not self._is_following:
            self._drop(_too_many_bodies())

    def stopping(self) -> None:
        """See Handler."""
        self._is_stopping = True
        if self._is_following and not self._response.may_lose:
            self._call.end()

    def _begin(self, message: ProcessingRequest, size: int) -> None:
        if message.observability_mode:
            self._call.end()  # nobody waits for an answer
            return
        self._response.told(message)
        if message.WhichOneof("request") in _RESPONSES:
            # The gateway shows responses only, of requests that somebody else has placed.
            self._timer.cancel()
            self._follow()
        else:
            self._take = self._listen
        self._take(message, size)

    def _listen(self, message: ProcessingRequest, size: int) -> None:
        try:
            got = self._conversation.receive(message)
            self._hold(size)
        except Refusal as refusal:
            self._refuse(refusal, DropReason.INVALID)
        except RequestDropped as dropped:
            self._drop(dropped)
        else:
            if isinstance(got, GatewayRequest):
                self._call.hold()
                self._task = self._loop.create_task(self._choose(got))
            elif got:
                self._call.send(_written(got))

    async def _choose(self, asked: GatewayRequest) -> None:
        try:
            choice = await self._service.choose(asked)
            self._task = None
            self._answer(asked, choice)
        except RequestDropped as dropped:
            self._task = None
            self._drop(dropped)
        except Exception:
            _log.exception("an answer cannot be written")
            self._call.abort(GrpcStatus.INTERNAL, "the endpoint picker failed")

    def _answer(self, asked: GatewayRequest, choice: Placement) -> None:
        answers = self._conversation.choose(choice.addresses, body=choice.body)
        messages: Iterable[bytes] = _written(answers)
        given_back = asked.body if self._conversation.gives_back else b""
        is_small = len(given_back if choice.body is None else choice.body) <= _WHOLE_BYTES
        if is_small:
            messages = whole = list(messages)
        if self._is_stopping or not self._service.options.observes:
            if is_small and self._call.try_finish(whole):
                return
            if not self._response.may_lose:
                self._call.send(messages)
                self._call.end()
                return
        self._choice = choice
        self._stay = self._service.observer(choice)
        self._response.follows(self._stay, choice.response_headers)
        self._follow()
        self._call.send(messages)
        self._call.release()

    def _follow(self) -> None:
        self._is_following = True
        self._take = self._see

    def _see(self, message: ProcessingRequest, size: int) -> None:
        del size  # it is given back at once
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
        self._let_go()
        self._call.send(_written(answers))
        self._call.end()

    def _give_up(self) -> None:
        """The request, or its choice, took too long; or its answer is not read."""
        if self._conversation.is_answered:
            self._call.abort(GrpcStatus.UNAVAILABLE, "the answer was not read in time")
            return
        self._timer = self._loop.call_later(_LAST_WORD_S, self._give_up)
        self._refuse(
            too_slow("request", self._service.options.request_timeout_s), DropReason.INVALID
        )

    def _hold(self, size: int) -> None:
        """Raises RequestDropped where it is too much."""
        if not self._service.held.take(size):
            raise _too_many_bodies()
        self._held_bytes += size

    def _let_go(self) -> None:
        self._service.held.release(self._held_bytes)
        self._held_bytes = 0


def _too_many_bodies() -> RequestDropped:
    refusal = overloaded("too many bodies at once; try again later", _RETRY_AFTER_S)
    return RequestDropped(refusal, DropReason.SATURATED)


def _written(answers: Iterable[ProcessingResponse]) -> Iterable[bytes]:
    return (answer.SerializeToString() for answer in answers)
