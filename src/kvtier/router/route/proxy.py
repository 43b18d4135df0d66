"""What the router does with a request: answer it itself, refuse it, or deliver it.

Invariants: every request gets an answer or a closed connection, and those that are for
replicas are counted once; keys are asked for before anything is read.
"""

import asyncio
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST

from kvtier.router.fleet import models
from kvtier.router.request import paths
from kvtier.router.request.refusals import (
    Refusal,
    unauthorized,
    unavailable,
    unknown_model,
    unknown_path,
)
from kvtier.router.route import headers
from kvtier.router.route.connection import Connection
from kvtier.router.route.delivery import Delivery, Parts
from kvtier.router.route.metering import Outcome
from kvtier.router.route.request import Request
from kvtier.router.route.response import Response, of_kind, of_refusal

_DELIVERED: Final = (paths.Kind.CHOOSE, paths.Kind.SEARCH, paths.Kind.ANY, paths.Kind.UPGRADE)
_SHOWN_CHARACTERS: Final = 80
_IDENTITY: Final = (b"request-id", headers.REQUEST_ID.encode())


class Proxy:
    """Handles requests. One for the process."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._fleet = parts.fleet
        self._meter = parts.meter
        self._clock = parts.clock
        self._delivery = Delivery(parts)
        self.draining = False

    async def handle(self, connection: Connection, request: Request) -> Response | None:
        """Called by the connection for each request; None: the answer has been passed on."""
        if self.draining:
            # Its next request comes on a connection to whoever goes on.
            request.keeps_alive = False
        identity = headers.request_id(request.fields)
        path = request.path
        kind = paths.kind(request.method, path)
        try:
            if kind in _DELIVERED:
                return await self._deliver(kind, connection, request, identity)
            return self._answer(kind, request, path)
        except Refusal as refusal:
            answer = of_refusal(refusal)
            answer.fields += [(name, identity.encode()) for name in _IDENTITY]
            return answer

    async def _deliver(
        self, kind: paths.Kind, connection: Connection, request: Request, identity: str
    ) -> Response | None:
        outcome = Outcome.FAILED
        begun_s = self._clock.now_s()
        try:
            self._authorize(request)
            if kind is paths.Kind.CHOOSE:
                answered = self._delivery.choose(connection, request, identity, begun_s)
            else:
                answered = self._delivery.search(connection, request, kind, identity)
            status, response = await answered
            outcome = _outcome(status)
            return response
        except Refusal as refusal:
            outcome = _outcome(refusal.status)
            raise
        except asyncio.CancelledError:
            outcome = Outcome.CANCELLED
            raise
        finally:
            self._meter.ended(outcome, self._clock.now_s() - begun_s)

    def _answer(self, kind: paths.Kind, request: Request, path: str) -> Response:
        if kind is paths.Kind.HEALTH:
            return self._health()
        if kind is paths.Kind.LIVE:
            return of_kind(b'{"status":"ok"}')
        if kind is paths.Kind.METRICS:
            return of_kind(self._meter.render(), CONTENT_TYPE_LATEST)
        self._authorize(request)
        if kind is paths.Kind.MODELS:
            return of_kind(models.render(models.merged(self._fleet)))
        if kind is paths.Kind.MODEL:
            return self._model(path.removeprefix("/v1/models/"))
        if kind is paths.Kind.ONE_REPLICA:
            message = f"{path} changes one replica: ask that replica itself"
            raise Refusal(403, message, code="not_allowed")
        raise unknown_path(request.method, path[:_SHOWN_CHARACTERS])

    def _authorize(self, request: Request) -> None:
        if not self._parts.keys.admit(request.fields):
            raise unauthorized()

    def _health(self) -> Response:
        if self.draining:
            raise unavailable("the router is shutting down")
        offered = len(self._fleet.available())
        if not offered:
            raise unavailable("no replica can take requests")
        return of_kind(b'{"status":"ok","replicas":%d}' % offered)

    def _model(self, name: str) -> Response:
        for card in models.merged(self._fleet):
            if card.id == name:
                return of_kind(card.text)
        raise unknown_model(name)


def _outcome(status: int) -> Outcome:
    match status:
        case 429:
            return Outcome.OVERLOADED
        case 503:
            return Outcome.UNAVAILABLE
        case _ if status >= 500:
            return Outcome.FAILED
        case _ if status >= 400:
            return Outcome.REFUSED
        case _:
            return Outcome.OK
