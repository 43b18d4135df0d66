"""The router: dispatches requests by path, starts and stops.

Invariants: every request gets a response or a closed connection; requests for replicas are counted
once; keys are checked before a body is read. The router listens only once every replica was asked
for its health; when it stops, /health tells load balancers first, and no request is cut off before
the drain time has passed; after `close` no task and no socket is left.
"""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Sequence
from typing import Final

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from kvtier.clock import Clock, MonotonicClock
from kvtier.router.assembly import Choices, KnownModels, PromptReader
from kvtier.router.fleet import models
from kvtier.router.fleet.members import Fleet, FleetListener
from kvtier.router.fleet.replicas import ReplicaDiscovery
from kvtier.router.fleet.waiting import Waiting
from kvtier.router.replica.health import Prober
from kvtier.router.replica.upstream import Upstreams
from kvtier.router.request import paths, sockets
from kvtier.router.request.refusals import (
    Refusal,
    unauthorized,
    unavailable,
    unknown_model,
    unknown_path,
)
from kvtier.router.request.sockets import cannot_listen
from kvtier.router.route import forwarding
from kvtier.router.route.connection import ClientConnection, ClientConnections, ConnectionLimits
from kvtier.router.route.delivery import Delivery, DeliveryParts
from kvtier.router.route.keys import ApiKeys
from kvtier.router.route.options import RouteOptions
from kvtier.router.route.reporting import DecisionLog, RequestOutcome, RouteMeter
from kvtier.router.route.request import HttpRequest
from kvtier.router.route.response import HttpResponse, of_kind, of_refusal

_DELIVERED: Final = (
    paths.PathKind.CHOOSE,
    paths.PathKind.SEARCH,
    paths.PathKind.ANY,
    paths.PathKind.UPGRADE,
)
_SHOWN_CHARACTERS: Final = 80
_IDENTITY: Final = (b"request-id", forwarding.REQUEST_ID.encode())
_log = logging.getLogger(__name__)
_BACKLOG = 1024
"""How many connections may wait to be accepted."""
_LOOK_S = 0.05
"""How often a draining router checks whether its last request has ended."""


class Proxy:
    """The request handler: answers requests itself, refuses them, or delivers them to replicas."""

    def __init__(self, parts: DeliveryParts) -> None:
        self._parts = parts
        self._fleet = parts.fleet
        self._meter = parts.meter
        self._clock = parts.clock
        self._delivery = Delivery(parts)
        self.draining = False

    async def handle(
        self, connection: ClientConnection, request: HttpRequest
    ) -> HttpResponse | None:
        """Handle a request of `connection`; return None if the response was streamed already."""
        if self.draining:
            # The client's next connection goes to another router.
            request.keeps_alive = False
        identity = forwarding.request_id(request.fields)
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
        self,
        kind: paths.PathKind,
        connection: ClientConnection,
        request: HttpRequest,
        identity: str,
    ) -> HttpResponse | None:
        outcome = RequestOutcome.FAILED
        begun_s = self._clock.now_s()
        try:
            self._authorize(request)
            if kind is paths.PathKind.CHOOSE:
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
            outcome = RequestOutcome.CANCELLED
            raise
        finally:
            self._meter.ended(outcome, self._clock.now_s() - begun_s)

    def _answer(self, kind: paths.PathKind, request: HttpRequest, path: str) -> HttpResponse:
        if kind is paths.PathKind.HEALTH:
            return self._health()
        if kind is paths.PathKind.LIVE:
            return of_kind(b'{"status":"ok"}')
        if kind is paths.PathKind.METRICS:
            return of_kind(self._meter.render(), CONTENT_TYPE_LATEST)
        self._authorize(request)
        if kind is paths.PathKind.MODELS:
            return of_kind(models.render(models.merged(self._fleet)))
        if kind is paths.PathKind.MODEL:
            return self._model(path.removeprefix("/v1/models/"))
        if kind is paths.PathKind.ONE_REPLICA:
            message = f"{path} changes a single replica: send it to that replica"
            raise Refusal(403, message, code="not_allowed")
        raise unknown_path(request.method, path[:_SHOWN_CHARACTERS])

    def _authorize(self, request: HttpRequest) -> None:
        if not self._parts.keys.admit(request.fields):
            raise unauthorized()

    def _health(self) -> HttpResponse:
        if self.draining:
            raise unavailable("the router is shutting down")
        offered = len(self._fleet.available())
        if not offered:
            raise unavailable("no replica can take requests")
        return of_kind(b'{"status":"ok","replicas":%d}' % offered)

    def _model(self, name: str) -> HttpResponse:
        for card in models.merged(self._fleet):
            if card.id == name:
                return of_kind(card.text)
        raise unknown_model(name)


def _outcome(status: int) -> RequestOutcome:
    match status:
        case 429:
            return RequestOutcome.OVERLOADED
        case 503:
            return RequestOutcome.UNAVAILABLE
        case _ if status >= 500:
            return RequestOutcome.FAILED
        case _ if status >= 400:
            return RequestOutcome.REFUSED
        case _:
            return RequestOutcome.OK


class RouterDependencies(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of the router that the command creates."""

    discovery: ReplicaDiscovery
    choices: Choices
    prompts: PromptReader
    keys: ApiKeys
    replica_key: str | None = None
    listeners: Sequence[FleetListener] = ()
    """Objects that are told when replicas join and leave."""
    collectors: Sequence[Collector] = ()
    """Metrics that are exposed beside the router's own."""


class Router:
    """A router. Its methods run on one event loop."""

    def __init__(
        self, options: RouteOptions, wiring: RouterDependencies, clock: Clock | None = None
    ) -> None:
        self._options = options
        self._discovery = wiring.discovery
        self._clock = clock or MonotonicClock()
        self._log = DecisionLog(options.decisions) if options.decisions else None
        self.fleet = Fleet()
        waiting = Waiting(self.fleet, options.in_flight, options.queue, options.queue_timeout)
        meter = RouteMeter(self.fleet, lambda: len(waiting), wiring.collectors)
        self._upstreams = Upstreams(
            options.connect_timeout, sockets.client_context(options.replica_ca, "--replica-ca")
        )
        self._tls = _server_tls(options)
        for listener in (self._upstreams, meter, *wiring.listeners):
            self.fleet.add_listener(listener)
        self._prober = Prober(
            self.fleet,
            self._upstreams,
            self._clock,
            interval_s=options.health_interval,
            timeout_s=options.health_timeout,
            key=wiring.replica_key,
        )
        self._proxy = Proxy(
            DeliveryParts(
                options=options,
                fleet=self.fleet,
                waiting=waiting,
                upstream=self._upstreams,
                choices=wiring.choices,
                prompts=KnownModels(wiring.prompts, waiting),
                meter=meter,
                keys=wiring.keys,
                replica_key=wiring.replica_key,
                log=self._log,
                clock=self._clock,
            )
        )
        self._connections: ClientConnections | None = None
        self._server: asyncio.Server | None = None
        self._follow: asyncio.Task[None] | None = None
        self._port = 0

    @property
    def port(self) -> int:
        """The port that the router listens on; 0 before `start`."""
        return self._port

    async def start(self) -> None:
        """Ask the replicas for their health, then listen.

        Raises InvalidSettings if the replicas cannot be read, or the address is in use.
        """
        ready = asyncio.Event()
        self._follow = asyncio.create_task(self.fleet.follow(self._discovery, ready))
        told = asyncio.create_task(ready.wait())
        await asyncio.wait((self._follow, told), return_when=asyncio.FIRST_COMPLETED)
        if not ready.is_set():
            told.cancel()
            await self._follow
        self._follow.add_done_callback(_say_end)
        await self._prober.first_round()
        options = self._options
        limits = ConnectionLimits(
            head_timeout_s=options.head_timeout,
            keep_alive_s=options.keep_alive,
            max_body_bytes=options.max_body,
        )
        self._connections = ClientConnections(self._proxy.handle, limits)
        try:
            self._server = await asyncio.get_running_loop().create_server(
                self._connections,
                options.host,
                options.port,
                ssl=self._tls,
                ssl_handshake_timeout=options.head_timeout if self._tls else None,
                backlog=_BACKLOG,
            )
        except OSError as error:
            raise cannot_listen("--host, --port", options.host, options.port, error) from error
        self._port = self._server.sockets[0].getsockname()[1]

    async def drain(self, *, is_interactive: bool = False) -> None:
        """Stop: serve for `drain` while /health says 503, then wait for requests to end.

        Requests have `drain_timeout` to end in. With `is_interactive` (Ctrl-C) the router stops as
        soon as there are no requests.
        """
        self._proxy.draining = True
        if self._server is None or self._connections is None:
            return
        await self._tell(self._connections, ends_idle=is_interactive)
        self._server.close()
        self._connections.close_idle()
        if self._connections.busy():
            _log.info(
                "waiting for %d requests to end, for %g s",
                self._connections.busy(),
                self._options.drain_timeout,
            )
        try:
            async with asyncio.timeout(self._options.drain_timeout):
                while self._connections.busy():
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            _log.warning("%d requests were cut off", self._connections.busy())

    async def _tell(self, connections: ClientConnections, *, ends_idle: bool) -> None:
        """Serve for `drain`, so that load balancers notice that /health says 503."""
        drain_s = self._options.drain
        if not drain_s or (ends_idle and not connections.busy()):
            _log.info("stopping")
            return
        _log.info("stopping: /health says 503 for %g s; a second signal stops at once", drain_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                while connections.busy() or not ends_idle:
                    await asyncio.sleep(_LOOK_S)

    async def close(self) -> None:
        """Stop at once and cut off all requests."""
        if self._server is not None and self._connections is not None:
            self._server.close()
            await self._connections.shutdown()
        if self._follow is not None:
            self._follow.cancel()
            await asyncio.gather(self._follow, return_exceptions=True)
        await self._prober.close()
        await self._upstreams.close()
        if self._log is not None:
            self._log.close()


def _say_end(follow: asyncio.Task[None]) -> None:
    """Log that discovery has failed; the fleet stays as it is."""
    if not follow.cancelled() and (error := follow.exception()) is not None:
        _log.error("the discovery of replicas has failed; the fleet stays as it is", exc_info=error)


def _server_tls(options: RouteOptions) -> ssl.SSLContext | None:
    if options.tls_certificate is None or options.tls_key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    sockets.load_certificate(context, options.tls_certificate, options.tls_key)
    return context
