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
from typing import Final, Protocol

from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest, ProcessingResponse
from google.protobuf.message import DecodeError

from kvtier.clock import Clock
from kvtier.router.epp.conversation import Asked, Conversation, OutOfTurn
from kvtier.router.epp.h2.bounds import Allowance
from kvtier.router.epp.h2.calls import Call
from kvtier.router.epp.h2.grpc import Status
from kvtier.router.epp.metering import Meter
from kvtier.router.epp.observing import Response, Stay
from kvtier.router.epp.options import Options
from kvtier.router.epp.picking import Choice, Dropped, Reason
from kvtier.router.request.refusals import Refusal, overloaded, too_slow

_log = logging.getLogger(__name__)

_WHOLE_BYTES: Final = 16_384
"""Of a body: with a larger one the answer is made piece by piece, as there is room."""
_RETRY_AFTER_S: Final = 1
_LAST_WORD_S: Final = 1.0
"""For a request that took too long, to hear of it."""
_RESPONSES: Final = ("response_headers", "response_body", "response_trailers")


class Desk(Protocol):
    """What all streams share; `server.Picker` is one."""

    options: Options
    meter: Meter
    clock: Clock
    held: Allowance
    observer: Callable[[Choice], Stay]

    async def choose(self, asked: Asked) -> Choice:
        """Raises Dropped, and nothing else."""
        ...


class Exchange:
    """Meets calls.Handler."""

    def __init__(self, desk: Desk, call: Call) -> None:
        options = desk.options
        self._desk = desk
        self._call = call
        self._conversation = Conversation(options.body_mode, options.max_body_bytes)
        self._response = Response(desk.clock, options.body_mode)
        self._take: Callable[[ProcessingRequest, int], None] = self._begin
        self._held_bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._choice: Choice | None = None
        self._stay: Stay | None = None
        self._is_following = self._is_leaving = False
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(options.request_timeout_s, self._give_up)
        desk.meter.opened()

    def receive(self, message: bytes) -> None:
        """See Handler."""
        try:
            self._take(ProcessingRequest.FromString(message), len(message))
        except (OutOfTurn, DecodeError) as error:
            self._desk.meter.out_of_turn()
            self._call.end(Status.INVALID_ARGUMENT, str(error))

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
            self._desk.meter.observed(self._choice, self._response.end())
        self._desk.meter.closed()
        del self._take  # a bound method of our own is a cycle, and nothing is called after this

    def crowded(self) -> None:
        """See Handler."""
        if not self._conversation.is_answered and not self._is_following:
            self._drop(_crowded())

    def stopping(self) -> None:
        """See Handler."""
        self._is_leaving = True
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
            self._refuse(refusal, Reason.INVALID)
        except Dropped as dropped:
            self._drop(dropped)
        else:
            if isinstance(got, Asked):
                self._call.hold()
                self._task = self._loop.create_task(self._choose(got))
            elif got:
                self._call.send(_written(got))

    async def _choose(self, asked: Asked) -> None:
        try:
            choice = await self._desk.choose(asked)
            self._task = None
            self._answer(asked, choice)
        except Dropped as dropped:
            self._task = None
            self._drop(dropped)
        except Exception:
            _log.exception("an answer cannot be written")
            self._call.cut(Status.INTERNAL, "the endpoint picker failed")

    def _answer(self, asked: Asked, choice: Choice) -> None:
        answers = self._conversation.choose(choice.addresses, body=choice.body)
        messages: Iterable[bytes] = _written(answers)
        given_back = asked.body if self._conversation.gives_back else b""
        is_small = len(given_back if choice.body is None else choice.body) <= _WHOLE_BYTES
        if is_small:
            messages = whole = list(messages)
        if self._is_leaving or not self._desk.options.observes:
            if is_small and self._call.finish(whole):
                return
            if not self._response.may_lose:
                self._call.send(messages)
                self._call.end()
                return
        self._choice = choice
        self._stay = self._desk.observer(choice)
        self._response.follows(self._stay, choice.response_headers)
        self._follow()
        self._call.send(messages)
        self._call.release()

    def _follow(self) -> None:
        self._is_following = True
        self._take = self._see

    def _see(self, message: ProcessingRequest, size: int) -> None:
        del size  # it is given back at once
        if self._is_leaving and not self._response.may_lose:
            self._call.end()
        else:
            self._call.send(_written(self._response.receive(message)))

    def _drop(self, dropped: Dropped) -> None:
        self._refuse(dropped.refusal, dropped.reason)

    def _refuse(self, refusal: Refusal, reason: Reason) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._desk.meter.dropped(reason)
        answers = self._conversation.refuse(refusal, reason.value)
        self._let_go()
        self._call.send(_written(answers))
        self._call.end()

    def _give_up(self) -> None:
        """The request, or its choice, took too long; or its answer is not read."""
        if self._conversation.is_answered:
            self._call.cut(Status.UNAVAILABLE, "the answer was not read in time")
            return
        self._timer = self._loop.call_later(_LAST_WORD_S, self._give_up)
        self._refuse(too_slow("request", self._desk.options.request_timeout_s), Reason.INVALID)

    def _hold(self, size: int) -> None:
        """Raises Dropped where it is too much."""
        if not self._desk.held.take(size):
            raise _crowded()
        self._held_bytes += size

    def _let_go(self) -> None:
        self._desk.held.give(self._held_bytes)
        self._held_bytes = 0


def _crowded() -> Dropped:
    refusal = overloaded("too many bodies at once; try again later", _RETRY_AFTER_S)
    return Dropped(refusal, Reason.SATURATED)


def _written(answers: Iterable[ProcessingResponse]) -> Iterable[bytes]:
    return (answer.SerializeToString() for answer in answers)
