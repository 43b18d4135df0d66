"""A replica with vLLM's API on a real socket, which streams, fails, hangs and dies as configured.

A test sets the behavior on the replica (`first_delay_s`, `status`, `dies_after`) before it sends a
request.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

EVENT = b'data: {"choices":[{"index":0,"text":" hello"}]}\n\n'
DONE = b"data: [DONE]\n\n"


class Replica:
    """A server on 127.0.0.1; `requests` and `bodies` record what it received."""

    def __init__(self, *models: str, name: str = "") -> None:
        self.models = list(models)
        self.described: dict[str, dict[str, Any]] = {}
        """Further fields of its model cards, such as `root` and `parent`, by model."""
        self.name = name
        self.requests: list[web.Request] = []
        self.bodies: list[bytes] = []
        self.cancelled = 0
        self.health_status = 200
        self.status = 200
        self.chunks = 4
        self.chunks_sent = 0
        self.first_delay_s = 0.0
        self.chunk_delay_s = 0.0
        self.dies_before_head = 0
        self.dies_before_body = False
        self.dies_after: int | None = None
        self.chunk = EVENT
        self.known_ids: set[str] = set()
        self.metrics = ""
        self.padding = ""
        self.held = asyncio.Event()
        self.held.set()
        self.port = 0
        self._runner: web.AppRunner | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    async def start(self, port: int = 0) -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/version", self._version)
        app.router.add_get("/v1/responses/{id}", self._response)
        app.router.add_post("/{tail:.*}", self._complete)
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop like a killed process: reset all connections."""
        if self._runner is None:
            return
        runner, self._runner = self._runner, None
        self.held.set()
        server = runner.server
        assert server is not None
        for connection in list(server.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await runner.cleanup()

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=self.health_status)

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(text=self.metrics)

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "0.32.0"})

    async def _models(self, request: web.Request) -> web.Response:
        data = [
            {"id": name, "object": "model", "owned_by": "vllm", **self.described.get(name, {})}
            for name in self.models
        ]
        return web.json_response({"object": "list", "data": data})

    async def _response(self, request: web.Request) -> web.Response:
        identity = request.match_info["id"]
        status = 200 if identity in self.known_ids else 404
        return web.json_response({"id": identity, "from": self.name}, status=status)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests.append(request)
        self.bodies.append(body)
        try:
            return await self._answer(request, body)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def _answer(self, request: web.Request, body: bytes) -> web.StreamResponse:
        await self.held.wait()
        if self.first_delay_s:
            await asyncio.sleep(self.first_delay_s)
        transport = request.transport
        assert transport is not None
        if self.dies_before_head:
            self.dies_before_head -= 1
            transport.abort()
            return web.Response()
        try:
            asked: dict[str, Any] = json.loads(body)
        except ValueError:
            asked = {}
        if not asked.get("stream"):
            text = (
                json.dumps({"object": "text_completion", "from": self.name, "echo": len(body)})
                + self.padding
            )
            headers = {"X-Replica": self.name, "Keep-Alive": "timeout=5"}
            return web.Response(
                text=text, status=self.status, content_type="application/json", headers=headers
            )
        out = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        out.enable_chunked_encoding()
        await out.prepare(request)
        if self.dies_before_body:
            transport.abort()
            return out
        for number in range(self.chunks):
            if number == self.dies_after:
                transport.abort()
                return out
            await out.write(self.chunk)
            self.chunks_sent += 1
            await asyncio.sleep(self.chunk_delay_s)
        await out.write(DONE)
        return out


@asynccontextmanager
async def replicas(*served: str, count: int = 1) -> AsyncIterator[list[Replica]]:
    """Run `count` replicas, named a, b, ..., which all serve the models in `served`."""
    made = [Replica(*(served or ("m",)), name=chr(ord("a") + i)) for i in range(count)]
    try:
        for replica in made:
            await replica.start()
        yield made
    finally:
        for replica in made:
            await replica.stop()
