"""The gRPC health service: whether the picker is alive, and whether it can choose.

Gateways check it on the picker's own port, so that a picker that cannot choose is not asked and the
gateway fails open. Kubernetes probes it on a port without TLS.

Its two messages have one field each, and are encoded as the well-known types that have the same
wire format: the package with their own types depends on the official gRPC server, which is not
needed otherwise.
Invariant: a call stores nothing but a short name; a call whose answer is not read is aborted by its
connection.
"""

import enum
from collections.abc import Iterator
from typing import Final

from google.protobuf.message import DecodeError
from google.protobuf.wrappers_pb2 import StringValue, UInt32Value

from kvtier.router.epp.h2.calls import Call, Services
from kvtier.router.epp.h2.grpc import GrpcStatus

HEALTH_SERVICES: Final = (
    "",
    "liveness",
    "readiness",
    "envoy.service.ext_proc.v3.ExternalProcessor",
    "inference-extension",
)
"""The services that gateways and Kubernetes probe; the last is the first generation's name."""
LIVENESS: Final = "liveness"
"""Serving from the start; the other services report whether the picker can choose."""

CHECK: Final = b"/grpc.health.v1.Health/Check"
WATCH: Final = b"/grpc.health.v1.Health/Watch"
_MESSAGE_BYTES: Final = 1024
"""Maximum of a request, which names a service; a Watch stores the name until it ends."""


class ServingStatus(enum.IntEnum):
    """The values of `HealthCheckResponse.ServingStatus`."""

    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


class HealthService:
    """The health of the picker: at first alive, but not ready to choose.

    Belongs to the event loop's thread.
    """

    def __init__(self) -> None:
        self._statuses = dict.fromkeys(HEALTH_SERVICES, ServingStatus.NOT_SERVING)
        self._statuses[LIVENESS] = ServingStatus.SERVING
        self._is_stopped = False
        self._watches: dict[_Watch, None] = {}

    @property
    def services(self) -> Services:
        """The two methods, for a GrpcListener."""
        return {CHECK: lambda call: _Check(self, call), WATCH: lambda call: _Watch(self, call)}

    def status(self, service: str) -> ServingStatus:
        """Return the status of a service."""
        return self._statuses.get(service, ServingStatus.SERVICE_UNKNOWN)

    def ready(self, *, is_ready: bool) -> None:
        """Set whether the picker can choose, and tell the watchers."""
        if not self._is_stopped:
            status = ServingStatus.SERVING if is_ready else ServingStatus.NOT_SERVING
            self._set(status, [name for name in self._statuses if name != LIVENESS])

    def stop(self) -> None:
        """Report every service as not serving from now on, whatever `ready` is given later."""
        self._is_stopped = True
        self._set(ServingStatus.NOT_SERVING, list(self._statuses))

    def _set(self, status: ServingStatus, services: list[str]) -> None:
        self._statuses.update(dict.fromkeys(services, status))
        for watch in list(self._watches):
            watch.notify()

    def add_watch(self, watch: "_Watch") -> None:
        """Notify a Watch of changes."""
        self._watches[watch] = None

    def remove_watch(self, watch: "_Watch") -> None:
        """Stop notifying a Watch."""
        self._watches.pop(watch, None)


class _Check:
    """A Check call: one request, one answer."""

    def __init__(self, health: HealthService, call: Call) -> None:
        self._health = health
        self._call = call

    def receive(self, message: bytes) -> None:
        service = _service_name(self._call, message)
        if service is None:
            return
        status = self._health.status(service)
        if status is ServingStatus.SERVICE_UNKNOWN:
            self._call.end(GrpcStatus.NOT_FOUND, "unknown service")
        else:
            self._call.send((_answer(status),))
            self._call.end()

    def half_closed(self) -> None:
        self._call.end(GrpcStatus.INVALID_ARGUMENT, "no message came")

    def sent(self) -> None:
        pass

    def closed(self) -> None:
        pass

    def out_of_memory(self) -> None:
        pass

    def stopping(self) -> None:
        pass


class _Watch:
    """A Watch call: the current status, then each change.

    A client that reads slowly gets only the newest status.
    """

    def __init__(self, health: HealthService, call: Call) -> None:
        self._health = health
        self._call = call
        self._service: str | None = None
        self._last_sent: ServingStatus | None = None
        self._is_sending = False

    def receive(self, message: bytes) -> None:
        if self._service is not None:
            self._call.end(GrpcStatus.INVALID_ARGUMENT, "more than one message came")
            return
        self._service = _service_name(self._call, message)
        if self._service is not None:
            self._health.add_watch(self)
            self.notify()

    def notify(self) -> None:
        """Send the status if it has changed and nothing is being sent."""
        if not self._is_sending and self._service is not None:
            self._is_sending = True
            self._call.send(self._changes(self._service))

    def half_closed(self) -> None:
        if self._service is None:
            self._call.end(GrpcStatus.INVALID_ARGUMENT, "no message came")

    def sent(self) -> None:
        self._is_sending = False

    def closed(self) -> None:
        self._health.remove_watch(self)

    def out_of_memory(self) -> None:
        pass

    def stopping(self) -> None:
        self._call.end(GrpcStatus.UNAVAILABLE, "the server is stopping")

    def _changes(self, service: str) -> Iterator[bytes]:
        """Yield the status, read when the call can send it, until it has not changed."""
        while (status := self._health.status(service)) is not self._last_sent:
            self._last_sent = status
            yield _answer(status)
        self._is_sending = False


def _service_name(call: Call, message: bytes) -> str | None:
    """Return the name of the service; if it cannot be read, end the call and return None."""
    if len(message) > _MESSAGE_BYTES:
        call.end(GrpcStatus.INVALID_ARGUMENT, "the name of the service is too long")
        return None
    try:
        name: str = StringValue.FromString(message).value
    except DecodeError:
        call.end(GrpcStatus.INVALID_ARGUMENT, "the message cannot be read")
        return None
    return name


def _answer(status: ServingStatus) -> bytes:
    written: bytes = UInt32Value(value=status).SerializeToString()
    return written
