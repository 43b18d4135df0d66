"""gRPC health: whether the picker lives, and whether it can choose.

Gateways check the service on the picker's own port, so that one that cannot choose is not asked
and fail-open opens; Kubernetes probes it on a port without TLS. Both ask this one.

Its two messages have a field each, and are written as the well-known types that look the same in
bytes: the package that has their own depends on the official server, which nothing else here needs.
Invariant: a call keeps a short name and nothing else; one whose answer is not read is its
connection's to cut.
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
"""Names that gateways and Kubernetes probe; the last is that of the first generation."""
LIVENESS: Final = "liveness"
"""ServingStatus as long as the process answers; the others say whether it can choose."""

CHECK: Final = b"/grpc.health.v1.Health/Check"
WATCH: Final = b"/grpc.health.v1.Health/Watch"
_MESSAGE_BYTES: Final = 1024
"""With the name of a service in it: a call that watches keeps it for as long as it is there."""


class ServingStatus(enum.IntEnum):
    """As `HealthCheckResponse.ServingStatus`."""

    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


class HealthService:
    """Belongs to the event loop's thread. Lives, and cannot choose yet."""

    def __init__(self) -> None:
        self._statuses = dict.fromkeys(HEALTH_SERVICES, ServingStatus.NOT_SERVING)
        self._statuses[LIVENESS] = ServingStatus.SERVING
        self._is_stopped = False
        self._watches: dict[_Watch, None] = {}

    @property
    def services(self) -> Services:
        """To be answered on a port."""
        return {CHECK: lambda call: _Check(self, call), WATCH: lambda call: _Watch(self, call)}

    def status(self, service: str) -> ServingStatus:
        """Of one of them."""
        return self._statuses.get(service, ServingStatus.SERVICE_UNKNOWN)

    def ready(self, *, is_ready: bool) -> None:
        """Whether it can choose, to everyone who asks or watches."""
        if not self._is_stopped:
            status = ServingStatus.SERVING if is_ready else ServingStatus.NOT_SERVING
            self._set(status, [name for name in self._statuses if name != LIVENESS])

    def stop(self) -> None:
        """Nobody is to ask any more; later words of `ready` are not heard."""
        self._is_stopped = True
        self._set(ServingStatus.NOT_SERVING, list(self._statuses))

    def _set(self, status: ServingStatus, services: list[str]) -> None:
        self._statuses.update(dict.fromkeys(services, status))
        for watch in list(self._watches):
            watch.tell()

    def watched(self, watch: "_Watch") -> None:
        """Tell it of changes."""
        self._watches[watch] = None

    def left(self, watch: "_Watch") -> None:
        """No more."""
        self._watches.pop(watch, None)


class _Check:
    """One question, one answer."""

    def __init__(self, health: HealthService, call: Call) -> None:
        self._health = health
        self._call = call

    def receive(self, message: bytes) -> None:
        service = _asked(self._call, message)
        if service is None:
            return
        status = self._health.status(service)
        if status is ServingStatus.SERVICE_UNKNOWN:
            self._call.end(GrpcStatus.NOT_FOUND, "no such service")
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
    """The status now, and whenever it changes; the newest only, to those who read slowly."""

    def __init__(self, health: HealthService, call: Call) -> None:
        self._health = health
        self._call = call
        self._service: str | None = None
        self._told: ServingStatus | None = None
        self._is_telling = False

    def receive(self, message: bytes) -> None:
        if self._service is not None:
            self._call.end(GrpcStatus.INVALID_ARGUMENT, "more than one message came")
            return
        self._service = _asked(self._call, message)
        if self._service is not None:
            self._health.watched(self)
            self.tell()

    def tell(self) -> None:
        """There may be news."""
        if not self._is_telling and self._service is not None:
            self._is_telling = True
            self._call.send(self._news(self._service))

    def half_closed(self) -> None:
        if self._service is None:
            self._call.end(GrpcStatus.INVALID_ARGUMENT, "no message came")

    def sent(self) -> None:
        self._is_telling = False

    def closed(self) -> None:
        self._health.left(self)

    def out_of_memory(self) -> None:
        pass

    def stopping(self) -> None:
        self._call.end(GrpcStatus.UNAVAILABLE, "the server is stopping")

    def _news(self, service: str) -> Iterator[bytes]:
        """Written when there is room."""
        while (status := self._health.status(service)) is not self._told:
            self._told = status
            yield _answer(status)
        self._is_telling = False


def _asked(call: Call, message: bytes) -> str | None:
    """The service's name, or the end of the call."""
    if len(message) > _MESSAGE_BYTES:
        call.end(GrpcStatus.INVALID_ARGUMENT, "no service has such a long name")
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
