"""The picker's gRPC server: one stream a request, closed once the gateway can go on alone.

Why it closes: a gateway whose stream ends cleanly proceeds without asking again, so that no chunk
of a response crosses it and the picker. Only where the gateway streams responses in full duplex
a stream stays open and gives everything back: what Envoy has sent when it learns that a stream
is closed is lost, and an engine that answers at once, as with an error, is quicker than that.
Invariants: every stream is answered for once or ends with an error; a stream that nobody
finishes ends in time.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import grpc
import msgspec
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest, ProcessingResponse
from envoy.service.ext_proc.v3.external_processor_pb2_grpc import (
    ExternalProcessorServicer,
    add_ExternalProcessorServicer_to_server,
)
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from kvtier.clock import Clock, MonotonicClock
from kvtier.errors import InvalidSettings
from kvtier.router.extproc.conversation import Asked, BodyMode, Conversation, OutOfTurn
from kvtier.router.extproc.health import Health
from kvtier.router.extproc.metering import Meter
from kvtier.router.extproc.observing import Response, Stay
from kvtier.router.extproc.picking import Choice, Dropped, Picking, Reason
from kvtier.router.serving.refusals import Refusal, overloaded, too_slow

_log = logging.getLogger(__name__)

_MESSAGE_ROOM_BYTES: Final = 1 << 20
"""Of a message, for what is around a buffered body."""
_RETRY_AFTER_S: Final = 1
_RESPONSES: Final = ("response_headers", "response_body", "response_trailers")
_OPTIONS: Final = (
    ("grpc.so_reuseport", 0),  # a second picker on the port is a mistake, and is told
    ("grpc.http2.lookahead_bytes", 4 << 20),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5000),
)

Context = grpc.aio.ServicerContext[ProcessingRequest, ProcessingResponse]


class _Hurried(logging.Filter):
    """Gateways that are done before a stream has been closed reset it: no error of anybody."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "ExecuteBatchError" not in record.getMessage()


logging.getLogger("grpc._cython.cygrpc").addFilter(_Hurried())


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How the picker speaks."""

    body_mode: BodyMode = BodyMode.FULL_DUPLEX
    """Of gateways that do not say how they are configured."""
    max_body_bytes: int = 64 << 20
    max_held_bytes: int = 1 << 30
    """Of all bodies that are being received or chosen for."""
    request_timeout_s: float = 60.0
    """For the whole of a request, and its choice."""
    observes: bool = False
    """Responses, wherever the gateway shows them."""
    always_closes: bool = False
    """Streams, also of gateways that lose what is under way then."""


class Picker(ExternalProcessorServicer):
    """Answers streams. Belongs to the event loop's thread."""

    def __init__(
        self,
        picking: Picking,
        meter: Meter,
        options: Options,
        *,
        observer: Callable[[Choice], Stay],
        clock: Clock | None = None,
    ) -> None:
        """`observer` is called for requests whose response is followed."""
        self._picking = picking
        self._meter = meter
        self._options = options
        self._observer = observer
        self._clock = clock or MonotonicClock()
        self._held_bytes = 0

    async def Process(self, request_iterator: Any, context: Context) -> None:  # noqa: N802
        """One request of a gateway. The name is the service's."""
        del request_iterator
        self._meter.opened()
        try:
            await self._process(context)
        except OutOfTurn as error:
            self._meter.out_of_turn()
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        finally:
            self._meter.closed()

    async def _process(self, context: Context) -> None:
        first = await context.read()
        if first is grpc.aio.EOF or first.observability_mode:
            return  # nobody waits for an answer
        response = Response(self._clock)
        response.told(first)
        if first.WhichOneof("request") in _RESPONSES:
            # The gateway shows responses only, of requests that somebody else has placed.
            await _send(context, response.receive(first))
            await self._follow(context, response)
            return
        choice = await self._answer(context, first)
        if choice is None or not self._follows(response):
            return
        stay = self._observer(choice)
        response.follows(stay, choice.response_headers)
        try:
            await self._follow(context, response)
        finally:
            stay.end()
            self._meter.observed(choice, response.end())

    def _follows(self, response: Response) -> bool:
        if self._options.always_closes:
            return False
        return self._options.observes or response.must_be_followed

    async def _answer(self, context: Context, message: ProcessingRequest) -> Choice | None:
        """The request's part of the stream; None where the client got an error, or went away."""
        options = self._options
        conversation = Conversation(options.body_mode, options.max_body_bytes)
        held_bytes = 0
        try:
            async with asyncio.timeout(options.request_timeout_s):
                while True:
                    got = conversation.receive(message)
                    self._hold(conversation.received_bytes - held_bytes)
                    held_bytes = conversation.received_bytes
                    if isinstance(got, Asked):
                        choice = await self._choose(got)
                        answers = conversation.choose(choice.addresses, body=choice.body)
                        await _send(context, answers)
                        return choice
                    await _send(context, got)
                    message = await context.read()
                    if message is grpc.aio.EOF:
                        return None
        except Dropped as dropped:
            refusal, reason = dropped.refusal, dropped.reason
        except Refusal as refused:
            refusal, reason = refused, Reason.INVALID
        except TimeoutError:
            refusal, reason = too_slow("request", options.request_timeout_s), Reason.INVALID
        finally:
            self._held_bytes -= held_bytes
        self._meter.dropped(reason)
        await _send(context, conversation.refuse(refusal, reason.value))
        return None

    def _hold(self, size: int) -> None:
        """Raises Dropped where it is too much."""
        if self._held_bytes + size > self._options.max_held_bytes:
            refusal = overloaded("too many bodies at once; try again later", _RETRY_AFTER_S)
            raise Dropped(refusal, Reason.SATURATED)
        self._held_bytes += size

    async def _choose(self, asked: Asked) -> Choice:
        since_s = self._clock.now_s()
        try:
            choice = await self._picking.choose(asked)
        except Dropped:
            raise
        except Exception as error:
            # A gateway in full duplex has sent the body and cannot fail open any more.
            _log.exception("choosing failed")
            refusal = Refusal(
                500, "the endpoint picker failed", kind="internal_error", code="internal_error"
            )
            raise Dropped(refusal, Reason.FAILED) from error
        self._meter.chosen(self._clock.now_s() - since_s)
        return choice

    async def _follow(self, context: Context, response: Response) -> None:
        while (message := await context.read()) is not grpc.aio.EOF:
            await _send(context, response.receive(message))


async def _send(context: Context, answers: Iterable[ProcessingResponse]) -> None:
    for answer in answers:
        await context.write(answer)


class Server:
    """The picker and its health on ports. `start`, then `stop`."""

    def __init__(self, picker: Picker, health: Health, max_body_bytes: int) -> None:
        most = max_body_bytes + _MESSAGE_ROOM_BYTES
        options = (*_OPTIONS, ("grpc.max_receive_message_length", most))
        self.health = health
        self._server = grpc.aio.server(options=options)
        self._probes = grpc.aio.server(options=_OPTIONS)
        add_ExternalProcessorServicer_to_server(picker, self._server)
        for server in (self._server, self._probes):
            add_HealthServicer_to_server(health.servicer, server)

    def bind(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        """Where gateways ask; without credentials in plain text. Returns the port."""
        return _bind(self._server, address, credentials)

    def bind_probes(self, address: str) -> int:
        """Where Kubernetes asks for health, in plain text. Returns the port."""
        return _bind(self._probes, address, None)

    async def start(self) -> None:
        """Answer."""
        await self.health.start()
        await self._server.start()
        await self._probes.start()

    async def stop(self, drain_s: float, grace_s: float) -> None:
        """Say not serving, answer for `drain_s` more, then let streams end within `grace_s`."""
        await self.health.stop()
        await asyncio.sleep(drain_s)
        await self._server.stop(grace_s)
        await self._probes.stop(0)


def _bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> int:
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise InvalidSettings(f"{address} cannot be listened on: is it in use?") from error


def addresses(host: str, ports: Sequence[int]) -> list[str]:
    """`host:port`, with brackets for IPv6."""
    shown = f"[{host}]" if ":" in host else host
    return [f"{shown}:{port}" for port in ports]
