"""The picker's process: the fleet, its health checks, the ports, and the metrics.

Invariants: the picker reports that it is ready only once discovery has listed the replicas and each
has been checked; from then on, requests get 503 if no endpoint is available, but the picker stays
ready. After `close` no task and no socket is left.
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
from kvtier.router.epp.h2.limits import H2Limits, MemoryBudget
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
"""What a message with a buffered body may take in addition to the body."""
_PROBE_BYTES: Final = 1 << 16


class ProcessOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a picker. A port of 0 takes any free port."""

    host: str = "127.0.0.1"
    port: int = 9002
    health_port: int = 9003
    metrics_port: int = 9090
    is_secure: bool = True
    certificate: Path | None = None
    """A PEM file, to be given with its key; None uses a self-signed certificate."""
    key: Path | None = None
    drain_s: float = 5.0
    """How long the picker goes on answering after it has reported that it stops, so that gateways
    notice."""
    grace_s: float = 30.0
    """How long streams that are still open after that have to end."""
    check_interval_s: float = 2.0
    check_timeout_s: float = 2.0
    stream: StreamOptions = StreamOptions()
    picking: PickingOptions = PickingOptions()


class ProcessDependencies(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a picker that its configuration determines."""

    discovery: ReplicaDiscovery
    chooser: Chooser
    prompts: PromptReader
    saturation: Callable[[Sequence[Endpoint], float], float] | None = None
    listeners: Sequence[FleetListener] = ()
    collectors: Sequence[Collector] = ()
    """Metrics that are exposed together with the picker's own."""


class PickerServer:
    """The gRPC ports: one for gateways and one for health probes.

    Call `bind` and `bind_probes`, `start`, then `stop`.
    """

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
        """Bind the gateways' port, in plain text if `tls` is None. Return the port."""
        return self._server.bind(host, port, tls)

    def bind_probes(self, host: str, port: int) -> int:
        """Bind the port of Kubernetes' health probes, in plain text. Return the port."""
        return self._probes.bind(host, port, None)

    async def start(self) -> None:
        """Accept connections on both ports."""
        await self._server.start()
        await self._probes.start()

    async def stop(self, drain_s: float, grace_s: float) -> None:
        """Report not serving, answer for `drain_s` more, then give streams `grace_s` to end."""
        self.health.stop()
        await asyncio.sleep(drain_s)
        await self._server.stop(grace_s)
        await self._probes.stop(0)


class Process:
    """A picker: call `start`, `drain` and `close` on one event loop."""

    def __init__(
        self, options: ProcessOptions, dependencies: ProcessDependencies, clock: Clock | None = None
    ) -> None:
        """Raises InvalidSettings if the certificate or its key cannot be used."""
        self._options = options
        self._discovery = dependencies.discovery
        clock = clock or MonotonicClock()
        self._tls = _tls(options)
        self.fleet = Fleet()
        self._connections = Upstreams(options.check_timeout_s)
        for listener in (self._connections, *dependencies.listeners):
            self.fleet.add_listener(listener)
        self._prober = Prober(
            self.fleet,
            self._connections,
            clock,
            interval_s=options.check_interval_s,
            timeout_s=options.check_timeout_s,
        )
        meter = PickerMeter(lambda: len(self.fleet.available()), dependencies.collectors)
        chooser = FleetPicking(
            self.fleet,
            dependencies.chooser,
            KnownModels(
                dependencies.prompts, Waiting(self.fleet, in_flight=0, bound=0, timeout_s=0)
            ),
            options.picking,
            saturation=dependencies.saturation,
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
        """Listen, wait until every replica has been checked, then report ready.

        Raises InvalidSettings if a port cannot be bound or discovery cannot start.
        """
        options = self._options
        self._server = PickerServer(self._service, HealthService())
        with _naming_flags("--host, --grpc-port", options.host, options.port):
            self.port = self._server.bind(options.host, options.port, self._tls)
        with _naming_flags("--host, --grpc-health-port", options.host, options.health_port):
            self.health_port = self._server.bind_probes(options.host, options.health_port)
        with _naming_flags("--host, --metrics-port", options.host, options.metrics_port):
            self.metrics_port = await self._exposition.start(options.host, options.metrics_port)
        await self._server.start()
        ready = asyncio.Event()
        self._follow = asyncio.create_task(self.fleet.follow(self._discovery, ready))
        ready_wait = asyncio.create_task(ready.wait())
        await asyncio.wait((self._follow, ready_wait), return_when=asyncio.FIRST_COMPLETED)
        if not ready.is_set():
            ready_wait.cancel()
            await self._follow
        await self._prober.first_round()
        self._server.health.ready(is_ready=True)

    def _arrive(self, placement: Placement) -> InFlightRequest:
        return self.fleet.add_load(placement.endpoint, placement.tokens, placement.missing_tokens)

    async def drain(self) -> None:
        """Report not serving, then let open streams end."""
        if self._server is not None:
            _log.info("stopping: answering gateways for another %g s", self._options.drain_s)
            await self._server.stop(self._options.drain_s, self._options.grace_s)

    async def close(self) -> None:
        """Stop at once. Idempotent."""
        if self._server is not None:
            await self._server.stop(0.0, 0.0)
        if self._follow is not None:
            self._follow.cancel()
            await asyncio.gather(self._follow, return_exceptions=True)
        await self._prober.close()
        await self._connections.close()
        await self._exposition.stop()


@contextlib.contextmanager
def _naming_flags(flags: str, host: str, port: int) -> Iterator[None]:
    """Add the flags' names to the error of a port that cannot be bound."""
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
