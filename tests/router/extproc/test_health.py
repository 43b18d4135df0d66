import asyncio

from grpc_health.v1 import health_pb2

from kvtier.router.extproc import names
from kvtier.router.extproc.health import Health

SERVING, NOT = (
    health_pb2.HealthCheckResponse.SERVING,
    health_pb2.HealthCheckResponse.NOT_SERVING,
)


async def statuses(health: Health) -> dict[str, int]:
    found = {}
    for service in names.HEALTH_SERVICES:
        request = health_pb2.HealthCheckRequest(service=service)
        found[service] = (await health.servicer.Check(request, None)).status
    return found


def test_it_lives_before_it_can_choose_and_hears_nothing_after_the_end() -> None:
    async def run() -> None:
        health = Health()
        await health.start()
        alive = dict.fromkeys(names.HEALTH_SERVICES, NOT) | {names.LIVENESS: SERVING}
        assert await statuses(health) == alive
        await health.ready(is_ready=True)
        assert set((await statuses(health)).values()) == {SERVING}
        await health.ready(is_ready=False)
        assert await statuses(health) == alive
        await health.stop()
        await health.ready(is_ready=True)
        assert set((await statuses(health)).values()) == {NOT}

    asyncio.run(run())
