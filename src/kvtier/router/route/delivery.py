"""A request on its way to a replica: read, matched, chosen for, sent, and if need be sent again.

Invariants: a replica is tried again, or the next one, only while the client has seen nothing;
what a replica may have begun to work on goes elsewhere `resends` times at most, so that a
request which kills engines does not kill all of them; load that is counted is uncounted; what
engines compute stays within `in_flight`, whichever replica it comes to in the end.
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

Answered = tuple[int, HttpResponse | None]
"""An answer's status; and the answer, where it has not been passed on already."""


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What the data path works with, put together by `server`. One of each for the process."""

    options: RouteOptions
    fleet: Fleet
    waiting: Waiting
    upstream: Callable[[Endpoint], Upstream]
    choices: Choices
    prompts: PromptReader
    meter: RouteMeter
    keys: ApiKeys
    replica_key: str | None
    """What replicas are shown instead of the client's key."""
    log: DecisionLog | None
    clock: Clock


class _Passage(msgspec.Struct, kw_only=True):
    """A request on its way."""

    request: HttpRequest
    message: Message
    asked: InferenceRequest
    chooser: Chooser
    extra: dict[str, str]
    """Headers of the answer."""
    begun_s: float


class _Begun(msgspec.Struct):
    """An answer that has begun, and what holds its endpoint."""

    answer: Answer
    endpoint: Endpoint
    stay: RequestLoad
    extra: dict[str, str]


class Delivery:
    """Delivers requests. One for the process."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._options = parts.options
        self._fleet = parts.fleet
        self._meter = parts.meter
        self._clock = parts.clock

    async def choose(
        self, connection: ClientConnection, request: HttpRequest, identity: str, begun_s: float
    ) -> Answered:
        """To the replica that is best for the model and the prompt in its body.

        Raises Refusal, and CutOff when the answer breaks off.
        """
        begun = await self._begin(request, identity, begun_s)
        # Body, prompt and decision are gone by now: an answer may take hours, ten thousand at once.
        if isinstance(begun, HttpResponse):
            return begun.status, begun
        return await self._finish(connection, request, begun)

    async def search(
        self,
        connection: ClientConnection,
        request: HttpRequest,
        kind: paths.PathKind,
        identity: str,
    ) -> Answered:
        """To any replica, or to each until one knows what is asked for."""
        message = await self._message(request, identity)
        found = await self._who_may(request, kind)
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

    async def _who_may(self, request: HttpRequest, kind: paths.PathKind) -> Sequence[Endpoint]:
        """Those of the model in the query, where a socket names one there; else everybody."""
        if kind is paths.PathKind.UPGRADE and (model := paths.model_of(request.target)):
            return await self._parts.waiting.candidates(model)
        found = self._fleet.available()
        if found and not any(self._takes(endpoint, kind) for endpoint in found):
            raise overloaded("all replicas are busy", RETRY_AFTER_S)
        return found

    def _takes(self, endpoint: Endpoint, kind: paths.PathKind) -> bool:
        """Whether it may be asked now. To look something up is no load, to cancel makes room."""
        is_load = kind in (paths.PathKind.CHOOSE, paths.PathKind.UPGRADE)
        if is_load and not self._parts.waiting.has_room(endpoint):
            return False
        return self._fleet.is_available(endpoint)

    async def _begin(
        self, request: HttpRequest, identity: str, begun_s: float
    ) -> _Begun | HttpResponse:
        """An answer that has begun, or a busy replica's words where nobody does better."""
        strategy = request.text(_STRATEGY)
        chooser = self._parts.choices.of(strategy)
        message = await self._message(request, identity)
        asked = bodies.parse_body(message.body or b"", request.text(b"content-type"))
        prompt = await prompt_for(chooser, self._parts.prompts, asked.fields, asked.model)
        extra = _extra(identity)
        if strategy:
            extra[STRATEGY] = strategy
        passage = _Passage(
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
        return await self._deliver(passage)

    async def _message(self, request: HttpRequest, identity: str) -> Message:
        if request.text(b"content-encoding"):
            raise Refusal(415, "compressed bodies are not understood", code="unsupported_encoding")
        body = await request.body(self._options.body_timeout)
        out = forwarding.replica_headers(
            request.fields, identity, self._parts.replica_key, keeps_key=not self._parts.keys
        )
        target = paths.replica_target(request.target)
        has_body = bool(body) or request.method == "POST"
        return Message(request.method, target, encode_fields(out), body if has_body else None)

    async def _deliver(self, passage: _Passage) -> _Begun | HttpResponse:
        """To the best replica, else to the next, until one answers."""
        waiting = self._parts.waiting
        resends = self._options.resends
        tried: set[Endpoint] = set()
        endpoints = await waiting.candidates(passage.asked.model)
        while True:
            decision = self._decide(passage, endpoints)
            if not decision.chosen:
                raise unavailable("the profile's filters leave no replica")
            failure: Undelivered | None = None
            for candidate in decision.chosen:
                # Since it was chosen, another one may have kept us waiting.
                if failure is not None and not self._takes(
                    candidate.endpoint, paths.PathKind.CHOOSE
                ):
                    continue
                tried.add(candidate.endpoint)
                try:
                    return await self._send(passage, decision, candidate)
                except Undelivered as error:
                    failure = error
                    resends -= error.taken
                    if resends < 0:
                        break
            assert failure is not None
            if failure.taken and tried.issuperset(self._fleet.candidates(passage.asked.model)):
                # It may have closed a connection that we were about to use: ask once more.
                tried.clear()
            endpoints = [] if resends < 0 else await self._left(passage.asked.model, tried)
            if not endpoints:
                if failure.busy is not None:
                    return failure.busy
                raise failure.refusal

    async def _left(self, model: str, tried: set[Endpoint]) -> Sequence[Endpoint]:
        """Who may be asked besides; while they are busy, it waits in line like others."""
        if tried.issuperset(self._fleet.candidates(model)):
            return ()
        try:
            return await self._parts.waiting.candidates(model, frozenset(tried))
        except Refusal:
            return ()  # what happened before says more

    def _decide(self, passage: _Passage, endpoints: Sequence[Endpoint]) -> RoutingDecision:
        begun_s = self._clock.now_s()
        decision = passage.chooser.decide(passage.asked, endpoints, begun_s)
        self._meter.choosing.add(self._clock.now_s() - begun_s)
        if self._parts.log is not None:
            self._parts.log.add(decision, passage.chooser.headers)
        if self._is_told(passage.request):
            passage.extra[EXPLANATION] = explain.header(record(decision))
        return decision

    def _is_told(self, request: HttpRequest) -> bool:
        how = self._options.explain
        return how == "always" or (how == "asked" and bool(request.text(EXPLAIN)))

    async def _send(
        self, passage: _Passage, decision: RoutingDecision, candidate: Candidate
    ) -> _Begun:
        endpoint = candidate.endpoint
        asked = passage.asked
        tokens = asked.prompt.tokens + asked.max_tokens
        stay = self._fleet.add_load(endpoint, tokens, decision.missing_tokens(candidate))
        try:
            passage.chooser.routed(asked, decision, candidate)
            answer = await self._exchange(endpoint, passage.message)
            passage.extra[forwarding.TARGET_POD] = endpoint.address
            passage.extra.update(passage.chooser.response_headers(asked, endpoint))
            if answer.head.status == BUSY:
                raise await set_aside(answer, passage.extra)
        except BaseException:
            self._leave(endpoint, stay)
            raise
        stay.answered()
        self._meter.first_byte.add(self._clock.now_s() - passage.begun_s)
        return _Begun(answer, endpoint, stay, passage.extra)

    async def _finish(
        self, connection: ClientConnection, request: HttpRequest, begun: _Begun
    ) -> Answered:
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
    ) -> _Begun:
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
        return _Begun(answer, endpoint, stay, extra)

    async def _exchange(self, endpoint: Endpoint, message: Message) -> Answer:
        """Send and wait for the first bytes; the breaker hears how it went."""
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
