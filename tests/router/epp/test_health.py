"""Health checks by a real gRPC client, with gRPC's own messages."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from kvtier.router.epp.h2.limits import H2Limits, MemoryBudget
from kvtier.router.epp.h2.listener import GrpcListener
from kvtier.router.epp.health import (
    CHECK,
    HEALTH_SERVICES,
    LIVENESS,
    WATCH,
    HealthService,
    ServingStatus,
)

SERVING, NOT, UNKNOWN = (
    health_pb2.HealthCheckResponse.SERVING,
    health_pb2.HealthCheckResponse.NOT_SERVING,
    health_pb2.HealthCheckResponse.SERVICE_UNKNOWN,
)
READY = health_pb2.HealthCheckRequest(service="readiness")


@asynccontextmanager
async def asked(
    health: HealthService,
) -> AsyncIterator[tuple[HealthStub, GrpcListener, grpc.aio.Channel]]:
    listener = GrpcListener(health.services, H2Limits(), MemoryBudget(1 << 20))
    port = listener.bind("127.0.0.1", 0, None)
    await listener.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield HealthStub(channel), listener, channel
    await listener.stop(0)


async def statuses(stub: HealthStub) -> dict[str, int]:
    found = {}
    for service in HEALTH_SERVICES:
        request = health_pb2.HealthCheckRequest(service=service)
        found[service] = (await stub.Check(request)).status
    return found


def test_liveness_precedes_readiness_and_stop_is_final() -> None:
    async def run() -> None:
        health = HealthService()
        async with asked(health) as (stub, _, _):
            alive = dict.fromkeys(HEALTH_SERVICES, NOT) | {LIVENESS: SERVING}
            assert await statuses(stub) == alive
            health.ready(is_ready=True)
            assert set((await statuses(stub)).values()) == {SERVING}
            health.ready(is_ready=False)
            assert await statuses(stub) == alive
            health.stop()
            health.ready(is_ready=True)
            assert set((await statuses(stub)).values()) == {NOT}

    asyncio.run(run())


def test_unknown_service_fails_check_and_can_be_watched() -> None:
    async def run() -> None:
        async with asked(HealthService()) as (stub, _, _):
            request = health_pb2.HealthCheckRequest(service="nobody's")
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await stub.Check(request)
            assert error.value.code() is grpc.StatusCode.NOT_FOUND
            watch = stub.Watch(request)
            assert (await watch.read()).status == UNKNOWN
            watch.cancel()

    asyncio.run(run())


def test_watch_reports_changes_and_ends_on_stop() -> None:
    async def run() -> None:
        health = HealthService()
        async with asked(health) as (stub, listener, _):
            watch = stub.Watch(READY)
            assert (await watch.read()).status == NOT
            health.ready(is_ready=False)
            health.ready(is_ready=True)
            assert (await watch.read()).status == SERVING
            health.stop()
            assert (await watch.read()).status == NOT
            stopping = asyncio.create_task(listener.stop(20))
            async with asyncio.timeout(10):
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await watch.read()
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE
            async with asyncio.timeout(10):
                await stopping

    asyncio.run(run())


def test_canceled_watch_is_removed() -> None:
    async def run() -> None:
        health = HealthService()
        async with asked(health) as (stub, _, _):
            watch = stub.Watch(READY)
            await watch.read()
            assert len(health._watches) == 1
            watch.cancel()
            async with asyncio.timeout(10):
                while health._watches:
                    await asyncio.sleep(0.001)

    asyncio.run(run())


@pytest.mark.parametrize("method", [CHECK, WATCH])
def test_malformed_health_request_is_refused(method: bytes) -> None:
    async def run() -> None:
        async with asked(HealthService()) as (_, _, channel):
            too_long = health_pb2.HealthCheckRequest(service="x" * 2000).SerializeToString()
            for message in (b"\xff\xff", None, too_long):
                call = channel.stream_stream(method.decode())()
                if message is not None:
                    await call.write(message)
                await call.done_writing()
                assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT

    asyncio.run(run())


def test_serving_status_matches_protocol() -> None:
    for status in ServingStatus:
        assert health_pb2.HealthCheckResponse.ServingStatus.Value(status.name) == status
