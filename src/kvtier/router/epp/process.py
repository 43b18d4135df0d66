"""The picker as one thing that starts and stops: the fleet, its health checks, ports, metrics.

Invariants: it says that it can choose only once discovery has spoken and every replica has been
asked; from then on no endpoint means 503, and not a picker that is missing. After `close` no
task and no socket is left.
"""

import asyncio
import contextlib
import datetime as dt
import logging
import ssl
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
from prometheus_client.registry import Collector

from kvtier.clock import Clock, MonotonicClock, wall_s
from kvtier.errors import InvalidSettings
from kvtier.router.assembly import Chooser, KnownModels, PromptReader
from kvtier.router.choose.base import Endpoint
from kvtier.router.epp import certificates, metering, picking, server
from kvtier.router.epp.health import Health
from kvtier.router.epp.observing import Stay
from kvtier.router.epp.options import Options as Speaking
from kvtier.router.fleet.members import Fleet, FleetListener
from kvtier.router.fleet.replicas import ReplicaDiscovery
from kvtier.router.fleet.waiting import Waiting
from kvtier.router.replica.health import Prober
from kvtier.router.replica.upstream import Upstreams
from kvtier.router.request.sockets import cannot_listen

_log = logging.getLogger(__name__)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What a person may set. Ports of 0 take free ones."""

    host: str = "127.0.0.1"
    port: int = 9002
    health_port: int = 9003
    metrics_port: int = 9090
    is_secure: bool = True
    certificate: Path | None = None
    """PEM, with its key; None: one of our own."""
    key: Path | None = None
    drain_s: float = 5.0
    """For which it answers after it has said that it stops, so that gateways hear of it."""
    grace_s: float = 30.0
    """For streams that are open then."""
    check_interval_s: float = 2.0
    check_timeout_s: float = 2.0
    speaking: Speaking = Speaking()
    choosing: picking.Options = picking.Options()


class Wiring(msgspec.Struct, frozen=True, kw_only=True):
    """What chooses."""

    discovery: ReplicaDiscovery
    chooser: Chooser
    prompts: PromptReader
    saturation: Callable[[Sequence[Endpoint], float], float] | None = None
    listeners: Sequence[FleetListener] = ()
    collectors: Sequence[Collector] = ()
    """Of metrics that are exposed beside the picker's own."""


class Process:
    """`start` and `close` run on one event loop."""

    def __init__(self, options: Options, wiring: Wiring, clock: Clock | None = None) -> None:
        """Raises InvalidSettings for certificates that cannot be used."""
        self._options = options
        self._discovery = wiring.discovery
        clock = clock or MonotonicClock()
        self._tls = _tls(options)
        self.fleet = Fleet()
        self._connections = Upstreams(options.check_timeout_s)
        for listener in (self._connections, *wiring.listeners):
            self.fleet.add_listener(listener)
        self._prober = Prober(
            self.fleet,
            self._connections,
            clock,
            interval_s=options.check_interval_s,
            timeout_s=options.check_timeout_s,
        )
        meter = metering.Meter(lambda: len(self.fleet.available()), wiring.collectors)
        chooser = picking.FleetPicking(
            self.fleet,
            wiring.chooser,
            KnownModels(wiring.prompts, Waiting(self.fleet, in_flight=0, bound=0, timeout_s=0)),
            options.choosing,
            saturation=wiring.saturation,
            clock=clock,
        )
        self._picker = server.Picker(
            chooser, meter, options.speaking, observer=self._arrive, clock=clock
        )
        self._exposition = metering.Exposition(meter)
        self._server: server.Server | None = None
        self._follow: asyncio.Task[None] | None = None
        self.port = self.health_port = self.metrics_port = 0

    async def start(self) -> None:
        """Listen, then learn the fleet, then say that it can choose. Raises InvalidSettings."""
        options = self._options
        self._server = server.Server(self._picker, Health())
        with _taken("--host, --grpc-port", options.host, options.port):
            self.port = self._server.bind(options.host, options.port, self._tls)
        with _taken("--host, --grpc-health-port", options.host, options.health_port):
            self.health_port = self._server.bind_probes(options.host, options.health_port)
        with _taken("--host, --metrics-port", options.host, options.metrics_port):
            self.metrics_port = await self._exposition.start(options.host, options.metrics_port)
        await self._server.start()
        ready = asyncio.Event()
        self._follow = asyncio.create_task(self.fleet.follow(self._discovery, ready))
        told = asyncio.create_task(ready.wait())
        await asyncio.wait((self._follow, told), return_when=asyncio.FIRST_COMPLETED)
        if not ready.is_set():
            told.cancel()
            await self._follow
        await self._prober.first_round()
        self._server.health.ready(is_ready=True)

    def _arrive(self, choice: picking.Choice) -> Stay:
        return self.fleet.add_load(choice.endpoint, choice.tokens, choice.missing_tokens)

    async def drain(self) -> None:
        """Gateways hear that it stops; streams that are open end."""
        if self._server is not None:
            _log.info("stopping: gateways hear of it for %g s", self._options.drain_s)
            await self._server.stop(self._options.drain_s, self._options.grace_s)

    async def close(self) -> None:
        """End at once. Idempotent."""
        if self._server is not None:
            await self._server.stop(0.0, 0.0)
        if self._follow is not None:
            self._follow.cancel()
            await asyncio.gather(self._follow, return_exceptions=True)
        await self._prober.close()
        await self._connections.close()
        await self._exposition.stop()


@contextlib.contextmanager
def _taken(flags: str, host: str, port: int) -> Iterator[None]:
    """What listens knows no flags: its error is said anew with them."""
    try:
        yield
    except InvalidSettings as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise cannot_listen(flags, host, port, error.__cause__) from error


def _tls(options: Options) -> ssl.SSLContext | None:
    if not options.is_secure:
        return None
    if options.certificate is not None and options.key is not None:
        return certificates.Exchanged(options.key, options.certificate).context()
    now = dt.datetime.fromtimestamp(wall_s(), dt.UTC)
    return certificates.context(certificates.self_signed(now))
