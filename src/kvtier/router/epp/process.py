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
from typing import Final

import msgspec
from prometheus_client.registry import Collector

from kvtier.clock import Clock, MonotonicClock, wall_s
from kvtier.errors import InvalidSettings
from kvtier.router.assembly import Chooser, KnownModels, PromptReader
from kvtier.router.choose.base import Endpoint
from kvtier.router.epp import certificates
from kvtier.router.epp.h2.limits import MemoryBudget, H2Limits
from kvtier.router.epp.h2.listener import GrpcListener
from kvtier.router.epp.health import HealthService
from kvtier.router.epp.metering import MetricsServer, PickerMeter
from kvtier.router.epp.observing import InFlightRequest
from kvtier.router.epp.picking import FleetPicking, PickingOptions, Placement
from kvtier.router.epp.service import PROCESS, ExtProcService, StreamOptions
from kvtier.router.fleet.members import Fleet, FleetListener
from kvtier.router.fleet.replicas import ReplicaDiscovery
from kvtier.router.fleet.waiting import Waiting
from kvtier.router.replica.health import Prober
from kvtier.router.replica.upstream import Upstreams
from kvtier.router.request.sockets import cannot_listen

_log = logging.getLogger(__name__)
_MESSAGE_ROOM_BYTES: Final = 1 << 20
"""Of a message, for what is around a buffered body."""
_PROBE_BYTES: Final = 1 << 16


class ProcessOptions(msgspec.Struct, frozen=True, kw_only=True):
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
    stream: StreamOptions = StreamOptions()
    picking: PickingOptions = PickingOptions()


class ProcessDependencies(msgspec.Struct, frozen=True, kw_only=True):
    """What chooses."""

    discovery: ReplicaDiscovery
    chooser: Chooser
    prompts: PromptReader
    saturation: Callable[[Sequence[Endpoint], float], float] | None = None
    listeners: Sequence[FleetListener] = ()
    collectors: Sequence[Collector] = ()
    """Of metrics that are exposed beside the picker's own."""


class PickerServer:
    """The picker and its health on ports. `bind` and `bind_probes`, `start`, then `stop`."""

    def __init__(self, service: ExtProcService, health: HealthService) -> None:
        most = service.options.max_body_bytes + _MESSAGE_ROOM_BYTES
        self.health = health
        self._server = GrpcListener(
            {PROCESS: service.process, **health.services},
            H2Limits(max_message_bytes=most),
            service.held,
            on_broken=service.meter.broke,
        )
        self._probes = GrpcListener(
            health.services,
            H2Limits(max_message_bytes=_PROBE_BYTES, max_streams=100),
            MemoryBudget(_PROBE_BYTES),
        )

    def bind(self, host: str, port: int, tls: ssl.SSLContext | None) -> int:
        """Where gateways ask; without TLS in plain text. Returns the port."""
        return self._server.bind(host, port, tls)

    def bind_probes(self, host: str, port: int) -> int:
        """Where Kubernetes asks for health, in plain text. Returns the port."""
        return self._probes.bind(host, port, None)

    async def start(self) -> None:
        """Answer."""
        await self._server.start()
        await self._probes.start()

    async def stop(self, drain_s: float, grace_s: float) -> None:
        """Say not serving, answer for `drain_s` more, then let streams end within `grace_s`."""
        self.health.stop()
        await asyncio.sleep(drain_s)
        await self._server.stop(grace_s)
        await self._probes.stop(0)


class Process:
    """`start` and `close` run on one event loop."""

    def __init__(
        self, options: ProcessOptions, wiring: ProcessDependencies, clock: Clock | None = None
    ) -> None:
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
        meter = PickerMeter(lambda: len(self.fleet.available()), wiring.collectors)
        chooser = FleetPicking(
            self.fleet,
            wiring.chooser,
            KnownModels(wiring.prompts, Waiting(self.fleet, in_flight=0, bound=0, timeout_s=0)),
            options.picking,
            saturation=wiring.saturation,
            clock=clock,
        )
        self._service = ExtProcService(
            chooser, meter, options.stream, observer=self._arrive, clock=clock
        )
        self._exposition = MetricsServer(meter)
        self._server: PickerServer | None = None
        self._follow: asyncio.Task[None] | None = None
        self.port = self.health_port = self.metrics_port = 0

    async def start(self) -> None:
        """Listen, then learn the fleet, then say that it can choose. Raises InvalidSettings."""
        options = self._options
        self._server = PickerServer(self._service, HealthService())
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

    def _arrive(self, choice: Placement) -> InFlightRequest:
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


def _tls(options: ProcessOptions) -> ssl.SSLContext | None:
    if not options.is_secure:
        return None
    if options.certificate is not None and options.key is not None:
        return certificates.CertificateReloader(options.key, options.certificate).context()
    now = dt.datetime.fromtimestamp(wall_s(), dt.UTC)
    return certificates.context(certificates.self_signed(now))
