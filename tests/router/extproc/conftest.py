"""gRPC's own threads and descriptors live as long as the process: they come before any test."""

import asyncio
import contextlib
from collections.abc import Iterator

import grpc
import pytest


async def _warm_up() -> None:
    grpc.aio.init_grpc_aio()
    first, second = grpc.aio.server(), grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    port = first.add_insecure_port("127.0.0.1:0")
    await first.start()
    with contextlib.suppress(RuntimeError):
        second.add_insecure_port(f"127.0.0.1:{port}")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await channel.channel_ready()
    await first.stop(0)
    await second.stop(0)


@pytest.fixture(scope="session", autouse=True)
def grpc_is_there() -> Iterator[None]:
    asyncio.run(_warm_up())
    yield
    grpc.aio.shutdown_grpc_aio()
