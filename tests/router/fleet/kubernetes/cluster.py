"""An API server over HTTP that keeps objects in memory and streams watches, and a scripted one."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import kmock
import kubernetes
from aiohttp import web
from aiohttp.test_utils import RawTestServer

PODS = "/api/v1/namespaces/prod/pods"
POOLS = "/apis/inference.networking.k8s.io/v1/namespaces/prod/inferencepools"
OLD_POOLS = "/apis/inference.networking.x-k8s.io/v1alpha2/namespaces/prod/inferencepools"
NEWER = "/apis/llm-d.ai/v1alpha2/namespaces/prod/inferenceobjectives"
OLDER = "/apis/inference.networking.x-k8s.io/v1alpha2/namespaces/prod/inferenceobjectives"
KINDS = (
    "v1/pods",
    "inference.networking.k8s.io/v1/inferencepools",
    "inference.networking.x-k8s.io/v1alpha2/inferencepools",
)
OBJECTIVES = (
    "llm-d.ai/v1alpha2/inferenceobjectives",
    "inference.networking.x-k8s.io/v1alpha2/inferenceobjectives",
)

LEAVING = {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["a/b"]}}
"""A change that deletes an object. The finalizer keeps it from being removed at once."""
WINDOW_S = 0.5
"""The window of watches. It is short because the emulator has no resource versions, so a change
between list and watch is seen only at the next list."""

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def api(url: str) -> Any:
    configuration = kubernetes.client.Configuration(host=url)
    configuration.retries = False
    return kubernetes.client.ApiClient(configuration)


class Abrupt(RawTestServer):
    """A server that stops without waiting: connections break as when a machine fails."""

    async def close(self) -> None:
        for connection in self.handler.connections if self.started else ():
            if connection.transport is not None:
                connection.transport.abort()
        await super().close()


class Cluster:
    def __init__(self, emulator: Any, server: Any, session: aiohttp.ClientSession) -> None:
        self.url = str(server.url).rstrip("/")
        self.api = api(self.url)
        self._emulator = emulator
        self._server = server
        self._session = session

    def serve(self, *kinds: str) -> None:
        for kind in kinds:
            self._emulator.resources[kind] = {"namespaced": True}

    async def send(self, method: str, path: str, body: Any = None) -> None:
        async with self._session.request(method, self.url + path, json=body) as response:
            assert response.status < 300, await response.text()

    async def die(self) -> None:
        """Stop the server; objects stay, connections break."""
        await self._server.__aexit__(None, None, None)

    async def come_back(self) -> None:
        port = int(self.url.rpartition(":")[2])
        self._server = kmock.Server(self._emulator, port=port, server_cls=Abrupt)
        await self._server.__aenter__()


@asynccontextmanager
async def cluster() -> AsyncIterator[Cluster]:
    async with kmock.KubernetesEmulator() as emulator, aiohttp.ClientSession() as session:
        server = kmock.Server(emulator, server_cls=Abrupt)
        await server.__aenter__()
        up = Cluster(emulator, server, session)
        up.serve(*KINDS)
        try:
            yield up
        finally:
            await up.die()


def run(test: Callable[[Cluster], Awaitable[None]]) -> None:
    async def go() -> None:
        async with cluster() as up:
            await test(up)

    asyncio.run(go())


@asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[str]:
    """Yield the URL of a server that answers every request with `answer`."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
