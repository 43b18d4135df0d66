"""Start gRPC's threads, which live as long as the process, before any test counts resources."""

import asyncio
from collections.abc import Iterator

import grpc
import pytest

from kvtier.router.epp.h2.limits import H2Limits, MemoryBudget
from kvtier.router.epp.h2.listener import GrpcListener


async def _warm_up() -> None:
    grpc.aio.init_grpc_aio()
    listener = GrpcListener({}, H2Limits(), MemoryBudget(0))
    port = listener.bind("127.0.0.1", 0, None)
    await listener.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await channel.channel_ready()
    await listener.stop(0)


@pytest.fixture(scope="session", autouse=True)
def grpc_is_there() -> Iterator[None]:
    asyncio.run(_warm_up())
    yield
    grpc.aio.shutdown_grpc_aio()
