"""gRPC health: whether the picker lives, and whether it can choose.

Gateways check the service on the picker's own port, so that one that cannot choose is not asked
and fail-open opens; Kubernetes probes it on a port without TLS. Both ask this one servicer.
"""

from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer

from kvtier.router.extproc import names

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """Belongs to the event loop's thread."""

    def __init__(self) -> None:
        self.servicer = HealthServicer()
        self._is_ready: bool | None = None

    async def start(self) -> None:
        """Lives, and cannot choose yet."""
        await self._set(names.LIVENESS, is_serving=True)
        await self.ready(is_ready=False)

    async def ready(self, *, is_ready: bool) -> None:
        """Whether it can choose, to everyone who asks or watches."""
        if is_ready is self._is_ready:
            return
        self._is_ready = is_ready
        for service in names.HEALTH_SERVICES:
            if service != names.LIVENESS:
                await self._set(service, is_serving=is_ready)

    async def stop(self) -> None:
        """Nobody is to ask any more; later words of `ready` are not heard."""
        await self.servicer.enter_graceful_shutdown()

    async def _set(self, service: str, *, is_serving: bool) -> None:
        await self.servicer.set(service, _SERVING if is_serving else _NOT_SERVING)
