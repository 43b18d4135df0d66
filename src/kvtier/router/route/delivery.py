"""Delivers a request to a replica: reads it, chooses a replica, sends it, and retries if necessary.

Invariants: a request is sent again only while the client has received nothing; a request that a
replica may have begun to work on is sent to other replicas at most `resends` times, so that a
request which crashes engines does not crash all of them; counted load is always released;
`in_flight` holds for every replica, also after retries.
"""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from kvtier.clock import Clock
from kvtier.router.assembly import Choices, Chooser, PromptReader, prompt_for
from kvtier.router.choose import explain
from kvtier.router.choose.base import Candidate, Endpoint, InferenceRequest
from kvtier.router.choose.decision import RoutingDecision
from kvtier.router.choose.record import STRATEGY, record
from kvtier.router.fleet.members import Fleet, RequestLoad
from kvtier.router.fleet.waiting import RETRY_AFTER_S, Waiting
from kvtier.router.replica.upstream import Upstream
from kvtier.router.request import message as bodies
from kvtier.router.request import paths
from kvtier.router.request.message import encode_fields
from kvtier.router.request.refusals import Refusal, overloaded, unavailable, upgrade_required
from kvtier.router.route import forwarding
from kvtier.router.route.connection import ClientConnection
from kvtier.router.route.forwarding import BUSY, Answer, Message, Undelivered, ask, set_aside, whole
from kvtier.router.route.keys import ApiKeys
from kvtier.router.route.options import RouteOptions
from kvtier.router.route.reporting import DecisionLog, RouteMeter
from kvtier.router.route.request import HttpRequest
from kvtier.router.route.response import UPGRADE, HttpResponse

EXPLAIN: Final = b"x-kvtier-explain"
EXPLANATION: Final = "x-kvtier-decision"
_STRATEGY: Final = STRATEGY.encode()

Delivered = tuple[int, HttpResponse | None]
"""The status of a response, and the response unless it was streamed already."""


class DeliveryParts(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of the data path, assembled by `server`. There is one of each per process."""

    options: RouteOptions
    fleet: Fleet
    waiting: Waiting
    upstream: Callable[[Endpoint], Upstream]
    choices: Choices
    prompts: PromptReader
    meter: RouteMeter
    keys: ApiKeys
    replica_key: str | None
    """The API key sent to replicas instead of the client's."""
    log: DecisionLog | None
    clock: Clock


class _RoutedRequest(msgspec.Struct, kw_only=True):
    """A request for which replicas are chosen, and what is needed to send it."""

    request: HttpRequest
    message: Message
    asked: InferenceRequest
    chooser: Chooser
    extra: dict[str, str]
    """Additional headers of the response."""
    begun_s: float


class _StartedAnswer(msgspec.Struct):
    """An answer that has begun, and the load that it is on its endpoint."""

    answer: Answer
    endpoint: Endpoint
    stay: RequestLoad
    extra: dict[str, str]


class Delivery:
    """Delivers requests to replicas. There is one per process."""

    def __init__(self, parts: DeliveryParts) -> None:
        self._parts = parts
        self._options = parts.options
        self._fleet = parts.fleet
        self._meter = parts.meter
        self._clock = parts.clock

    async def choose(
        self, connection: ClientConnection, request: HttpRequest, identity: str, begun_s: float
    ) -> Delivered:
        """Deliver a request to the best replica for the model and the prompt in its body.

        Raises Refusal, and CutOff if the answer breaks off.
        """
        begun = await self._begin(request, identity, begun_s)
        # Body, prompt and decision are released here, because ten thousand answers may be streamed
        # at the same time, for hours.
        if isinstance(begun, HttpResponse):
            return begun.status, begun
        return await self._finish(connection, request, begun)

    async def search(
        self,
        connection: ClientConnection,
        request: HttpRequest,
        kind: paths.PathKind,
        identity: str,
    ) -> Delivered:
        """Deliver a request to any replica, or to one after the other until one does not say 404.

        Raises as `choose` does.
        """
        message = await self._message(request, identity)
        found = await self._search_order(request, kind)
        if kind is paths.PathKind.UPGRADE:
            message = _upgrading(request, message)
        endpoints = sorted(found, key=lambda endpoint: endpoint.in_flight)
        failure: Undelivered | None = None
        for endpoint in endpoints:
            if not self._takes(endpoint, kind):
                continue
            is_last = kind is not paths.PathKind.SEARCH or endpoint is endpoints[-1]
            try:
                begun = await self._ask_one(endpoint, message, identity, is_last=is_last)
            except Undelivered as error:
                failure = error
            else:
                return await self._finish(connection, request, begun)
        if failure is None:
            raise unavailable("no replica can take requests")
        if failure.busy is not None:
            return failure.busy.status, failure.busy
        raise failure.refusal

    async def _search_order(self, request: HttpRequest, kind: paths.PathKind) -> Sequence[Endpoint]:
        """Return the replicas of the model that a WebSocket's query names, else all replicas."""
        if kind is paths.PathKind.UPGRADE and (model := paths.model_of(request.target)):
            return await self._parts.waiting.candidates(model)
        found = self._fleet.available()
        if found and not any(self._takes(endpoint, kind) for endpoint in found):
            raise overloaded("all replicas are busy", RETRY_AFTER_S)
        return found

    def _takes(self, endpoint: Endpoint, kind: paths.PathKind) -> bool:
        """Return True if the replica may be asked now; lookups and cancellations always may."""
        is_load = kind in (paths.PathKind.CHOOSE, paths.PathKind.UPGRADE)
        if is_load and not self._parts.waiting.has_room(endpoint):
            return False
        return self._fleet.is_available(endpoint)

    async def _begin(
        self, request: HttpRequest, identity: str, begun_s: float
    ) -> _StartedAnswer | HttpResponse:
        """Read and route a request; return an answer that has begun, or a busy replica's."""
        strategy = request.text(_STRATEGY)
        chooser = self._parts.choices.of(strategy)
        message = await self._message(request, identity)
        asked = bodies.parse_body(message.body or b"", request.text(b"content-type"))
        prompt = await prompt_for(chooser, self._parts.prompts, asked.fields, asked.model)
        extra = _extra(identity)
        if strategy:
            extra[STRATEGY] = strategy
        routed = _RoutedRequest(
            request=request,
            message=message,
            asked=InferenceRequest(
                request_id=identity,
                model=asked.model,
                prompt=prompt,
                max_tokens=asked.max_tokens,
                headers=forwarding.plain_headers(request.fields),
                priority=asked.priority,
            ),
            chooser=chooser,
            extra=extra,
            begun_s=begun_s,
        )
        return await self._deliver(routed)

    async def _message(self, request: HttpRequest, identity: str) -> Message:
        if request.text(b"content-encoding"):
            raise Refusal(415, "compressed bodies are not supported", code="unsupported_encoding")
        body = await request.body(self._options.body_timeout)
        out = forwarding.replica_headers(
            request.fields, identity, self._parts.replica_key, keeps_key=not self._parts.keys
        )
        target = paths.replica_target(request.target)
        has_body = bool(body) or request.method == "POST"
        return Message(request.method, target, encode_fields(out), body if has_body else None)

    async def _deliver(self, routed: _RoutedRequest) -> _StartedAnswer | HttpResponse:
        """Send a request to the best replica, else to the next ones, until one answers."""
        waiting = self._parts.waiting
        resends = self._options.resends
        tried: set[Endpoint] = set()
        endpoints = await waiting.candidates(routed.asked.model)
        while True:
            decision = self._decide(routed, endpoints)
            if not decision.chosen:
                raise unavailable("the profile's filters leave no replica")
            failure: Undelivered | None = None
            for candidate in decision.chosen:
                # The state of this replica may have changed while another one was tried.
                if failure is not None and not self._takes(
                    candidate.endpoint, paths.PathKind.CHOOSE
                ):
                    continue
                tried.add(candidate.endpoint)
                try:
                    return await self._send(routed, decision, candidate)
                except Undelivered as error:
                    failure = error
                    resends -= error.taken
                    if resends < 0:
                        break
            assert failure is not None
            if failure.taken and tried.issuperset(self._fleet.candidates(routed.asked.model)):
                # The replica may just have closed the idle connection that was used: try all again.
                tried.clear()
            endpoints = [] if resends < 0 else await self._left(routed.asked.model, tried)
            if not endpoints:
                if failure.busy is not None:
                    return failure.busy
                raise failure.refusal

    async def _left(self, model: str, tried: set[Endpoint]) -> Sequence[Endpoint]:
        """Wait for a replica that was not tried yet; return none if there is none."""
        if tried.issuperset(self._fleet.candidates(model)):
            return ()
        try:
            return await self._parts.waiting.candidates(model, frozenset(tried))
        except Refusal:
            return ()  # the earlier failure is more informative

    def _decide(self, routed: _RoutedRequest, endpoints: Sequence[Endpoint]) -> RoutingDecision:
        begun_s = self._clock.now_s()
        decision = routed.chooser.decide(routed.asked, endpoints, begun_s)
        self._meter.choosing.add(self._clock.now_s() - begun_s)
        if self._parts.log is not None:
            self._parts.log.add(decision, routed.chooser.headers)
        if self._explains(routed.request):
            routed.extra[EXPLANATION] = explain.header(record(decision))
        return decision

    def _explains(self, request: HttpRequest) -> bool:
        how = self._options.explain
        return how == "always" or (how == "asked" and bool(request.text(EXPLAIN)))

    async def _send(
        self, routed: _RoutedRequest, decision: RoutingDecision, candidate: Candidate
    ) -> _StartedAnswer:
        endpoint = candidate.endpoint
        asked = routed.asked
        tokens = asked.prompt.tokens + asked.max_tokens
        stay = self._fleet.add_load(endpoint, tokens, decision.missing_tokens(candidate))
        try:
            routed.chooser.routed(asked, decision, candidate)
            answer = await self._exchange(endpoint, routed.message)
            routed.extra[forwarding.TARGET_POD] = endpoint.address
            routed.extra.update(routed.chooser.response_headers(asked, endpoint))
            if answer.head.status == BUSY:
                raise await set_aside(answer, routed.extra)
        except BaseException:
            self._leave(endpoint, stay)
            raise
        stay.answered()
        self._meter.first_byte.add(self._clock.now_s() - routed.begun_s)
        return _StartedAnswer(answer, endpoint, stay, routed.extra)

    async def _finish(
        self, connection: ClientConnection, request: HttpRequest, begun: _StartedAnswer
    ) -> Delivered:
        answer, exchange = begun.answer, begun.answer.exchange
        status = answer.head.status
        try:
            if exchange.is_whole and answer.head.has_body:
                return status, whole(answer, begun.extra, exchange.taken())
            fields = forwarding.client_headers(answer.head.fields, begun.extra)
            outgoing = connection.begin(request, exchange, fields, self._options.idle_timeout)
            await outgoing.ended()
            return status, None
        finally:
            exchange.close()
            self._leave(begun.endpoint, begun.stay)

    def _leave(self, endpoint: Endpoint, stay: RequestLoad) -> None:
        stay.end()
        self._parts.waiting.ended(endpoint)

    async def _ask_one(
        self, endpoint: Endpoint, message: Message, identity: str, *, is_last: bool
    ) -> _StartedAnswer:
        stay = self._fleet.add_load(endpoint, 0, 0)
        try:
            answer = await self._exchange(endpoint, message)
            extra = _extra(identity)
            extra[forwarding.TARGET_POD] = endpoint.address
            if answer.head.status == 404 and not is_last:
                raise await set_aside(answer, extra)
        except BaseException:
            self._leave(endpoint, stay)
            raise
        return _StartedAnswer(answer, endpoint, stay, extra)

    async def _exchange(self, endpoint: Endpoint, message: Message) -> Answer:
        """Send a request and wait for the first bytes; tell the fleet whether that worked."""
        member = self._fleet.member(endpoint)
        self._meter.sent(endpoint.name)
        try:
            answer = await ask(
                self._parts.upstream(endpoint),
                message,
                self._options.first_byte_timeout,
                endpoint.name,
            )
        except Undelivered:
            self._meter.retried += 1
            self._fleet.mark_undelivered(member, self._clock.now_s())
            raise
        self._fleet.mark_delivered(member)
        return answer


def _upgrading(request: HttpRequest, message: Message) -> Message:
    if not request.asks_upgrade:
        raise upgrade_required()
    return Message("GET", message.target, message.fields + UPGRADE, None, upgrades=True)


def _extra(identity: str) -> dict[str, str]:
    return {"request-id": identity, forwarding.REQUEST_ID: identity}
