"""What the router does with a request: answer it itself, refuse it, or deliver it.

Invariants: every request gets an answer or a closed connection, and those that are for
replicas are counted once; keys are asked for before anything is read.
"""

import asyncio
from typing import Final
from urllib.parse import unquote

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from kvtier.router.http import headers
from kvtier.router.http.connection import Connection, CutOff, answer_refusal
from kvtier.router.http.delivery import Delivery, Parts
from kvtier.router.http.metering import Outcome
from kvtier.router.serving import models, paths
from kvtier.router.serving.refusals import (
    JSON,
    Refusal,
    unauthorized,
    unavailable,
    unknown_model,
    unknown_path,
)

_DELIVERED: Final = (paths.Kind.CHOOSE, paths.Kind.SEARCH, paths.Kind.ANY)
_SHOWN_CHARACTERS: Final = 80


class Proxy:
    """Handles requests. One for the process."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._fleet = parts.fleet
        self._meter = parts.meter
        self._clock = parts.clock
        self._delivery = Delivery(parts)
        self.draining = False

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Called by the server for each request."""
        connection = request.protocol
        assert isinstance(connection, Connection)
        connection.begin()
        identity = headers.request_id(request.headers)
        path = request.rel_url.raw_path
        path = unquote(path) if "%" in path else path
        kind = paths.kind(request.method, path)
        try:
            if kind in _DELIVERED:
                return await self._deliver(kind, request, identity)
            return self._answer(kind, request, path)
        except Refusal as refusal:
            answer = answer_refusal(refusal)
            answer.headers["request-id"] = answer.headers[headers.REQUEST_ID] = identity
            return answer
        finally:
            connection.end()

    async def _deliver(
        self, kind: paths.Kind, request: web.BaseRequest, identity: str
    ) -> web.StreamResponse:
        outcome = Outcome.FAILED
        begun_s = self._clock.now_s()
        try:
            self._authorize(request)
            if kind is paths.Kind.CHOOSE:
                answer = await self._delivery.choose(request, identity, begun_s)
            else:
                answer = await self._delivery.search(request, kind, identity)
            outcome = _outcome(answer.status)
            return answer
        except Refusal as refusal:
            outcome = _outcome(refusal.status)
            raise
        except asyncio.CancelledError:
            outcome = Outcome.CANCELLED
            raise
        except CutOff as error:
            outcome = Outcome.CANCELLED if error.by_client else Outcome.FAILED
            raise
        finally:
            self._meter.ended(outcome, self._clock.now_s() - begun_s)

    def _answer(self, kind: paths.Kind, request: web.BaseRequest, path: str) -> web.Response:
        if kind is paths.Kind.HEALTH:
            return self._health()
        if kind is paths.Kind.LIVE:
            return _json(b'{"status":"ok"}')
        if kind is paths.Kind.METRICS:
            text = self._meter.render()
            return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})
        self._authorize(request)
        if kind is paths.Kind.MODELS:
            return _json(models.render(models.merged(self._fleet)))
        if kind is paths.Kind.MODEL:
            return self._model(path.removeprefix("/v1/models/"))
        if kind is paths.Kind.ONE_REPLICA:
            message = f"{path} changes one replica: ask that replica itself"
            raise Refusal(403, message, code="not_allowed")
        raise unknown_path(request.method, path[:_SHOWN_CHARACTERS])

    def _authorize(self, request: web.BaseRequest) -> None:
        if not self._parts.keys.admit(request.headers):
            raise unauthorized()

    def _health(self) -> web.Response:
        if self.draining:
            raise unavailable("the router is shutting down")
        offered = len(self._fleet.available())
        if not offered:
            raise unavailable("no replica can take requests")
        return _json(b'{"status":"ok","replicas":%d}' % offered)

    def _model(self, name: str) -> web.Response:
        for card in models.merged(self._fleet):
            if card.id == name:
                return _json(card.text)
        raise unknown_model(name)


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, content_type=JSON)


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
