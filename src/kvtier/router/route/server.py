"""The router as one thing that starts and stops.

Invariants: it listens only once every replica has been asked; when it stops, load balancers hear
of it first, and nobody is cut off before the drain time; after `close` no task and no socket is
left.
"""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Sequence

import msgspec
from prometheus_client.registry import Collector

from kvtier.clock import Clock, MonotonicClock
from kvtier.router.choices import Choices, Prompts
from kvtier.router.fleet.members import Fleet, Listener
from kvtier.router.fleet.replicas import Discovery
from kvtier.router.fleet.waiting import Waiting
from kvtier.router.known import KnownModels
from kvtier.router.replica.health import Prober
from kvtier.router.replica.upstream import Upstreams
from kvtier.router.request import tls
from kvtier.router.request.listening import cannot_listen
from kvtier.router.route.connection import Front, Limits
from kvtier.router.route.decisions import DecisionLog
from kvtier.router.route.delivery import Parts
from kvtier.router.route.keys import Keys
from kvtier.router.route.metering import Meter
from kvtier.router.route.options import Options
from kvtier.router.route.proxy import Proxy

_log = logging.getLogger(__name__)

_BACKLOG = 1024
"""Connections that may wait to be accepted."""
_LOOK_S = 0.05
"""How often a draining router looks whether its last request has ended."""


class Wiring(msgspec.Struct, frozen=True, kw_only=True):
    """What the process brings along."""

    discovery: Discovery
    choices: Choices
    prompts: Prompts
    keys: Keys
    replica_key: str | None = None
    listeners: Sequence[Listener] = ()
    """Hear of replicas that come and go; those that learn about replicas."""
    collectors: Sequence[Collector] = ()
    """Of metrics that are exposed beside the router's own."""


class Router:
    """One router. `start` and `close` run on the same event loop."""

    def __init__(self, options: Options, wiring: Wiring, clock: Clock | None = None) -> None:
        self._options = options
        self._discovery = wiring.discovery
        self._clock = clock or MonotonicClock()
        self._log = DecisionLog(options.decisions) if options.decisions else None
        self.fleet = Fleet()
        waiting = Waiting(self.fleet, options.in_flight, options.queue, options.queue_timeout)
        meter = Meter(self.fleet, lambda: len(waiting), wiring.collectors)
        self._upstreams = Upstreams(
            options.connect_timeout, tls.checking(options.replica_ca, "--replica-ca")
        )
        self._tls = _server_tls(options)
        for listener in (self._upstreams, meter, *wiring.listeners):
            self.fleet.listen(listener)
        self._prober = Prober(
            self.fleet,
            self._upstreams,
            self._clock,
            interval_s=options.health_interval,
            timeout_s=options.health_timeout,
            key=wiring.replica_key,
        )
        self._proxy = Proxy(
            Parts(
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
        self._front: Front | None = None
        self._server: asyncio.Server | None = None
        self._follow: asyncio.Task[None] | None = None
        self._port = 0

    @property
    def port(self) -> int:
        """Where it listens, or did; 0 before it has started."""
        return self._port

    async def start(self) -> None:
        """Listen. Raises InvalidSettings: no replicas to be read, an address that is taken."""
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
        limits = Limits(
            head_timeout_s=options.head_timeout,
            keep_alive_s=options.keep_alive,
            max_body_bytes=options.max_body,
        )
        self._front = Front(self._proxy.handle, limits)
        try:
            self._server = await asyncio.get_running_loop().create_server(
                self._front,
                options.host,
                options.port,
                ssl=self._tls,
                ssl_handshake_timeout=options.head_timeout if self._tls else None,
                backlog=_BACKLOG,
            )
        except OSError as error:
            raise cannot_listen("--host, --port", options.host, options.port, error) from error
        self._port = self._server.sockets[0].getsockname()[1]

    async def drain(self, *, is_asked_for: bool = False) -> None:
        """Serve for `drain` more, so that load balancers hear of it; then wait for requests.

        `is_asked_for`: by somebody at a terminal, so that it ends as soon as nothing is under way.
        Requests have `drain_timeout` to end in.
        """
        self._proxy.draining = True
        if self._server is None or self._front is None:
            return
        await self._tell(self._front, ends_idle=is_asked_for)
        self._server.close()
        self._front.let_go()
        if self._front.busy():
            _log.info(
                "waiting for %d requests to end, for %g s",
                self._front.busy(),
                self._options.drain_timeout,
            )
        try:
            async with asyncio.timeout(self._options.drain_timeout):
                while self._front.busy():
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            _log.warning("%d requests are cut off", self._front.busy())

    async def _tell(self, front: Front, *, ends_idle: bool) -> None:
        """Let load balancers ask for health, and send what they send until they have."""
        drain_s = self._options.drain
        if not drain_s or (ends_idle and not front.busy()):
            _log.info("stopping")
            return
        _log.info("stopping: /health says 503 for %g s; told again, it ends at once", drain_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                while front.busy() or not ends_idle:
                    await asyncio.sleep(_LOOK_S)

    async def close(self) -> None:
        """End at once: requests that are still under way are cut off."""
        if self._server is not None and self._front is not None:
            self._server.close()
            await self._front.shutdown()
        if self._follow is not None:
            self._follow.cancel()
            await asyncio.gather(self._follow, return_exceptions=True)
        await self._prober.close()
        await self._upstreams.close()
        if self._log is not None:
            self._log.close()


def _say_end(follow: asyncio.Task[None]) -> None:
    """A discovery that fails later leaves the fleet as it is: nobody else would say so."""
    if not follow.cancelled() and (error := follow.exception()) is not None:
        _log.error("replicas are not followed any more", exc_info=error)


def _server_tls(options: Options) -> ssl.SSLContext | None:
    if options.tls_certificate is None or options.tls_key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.show(context, options.tls_certificate, options.tls_key)
    return context
