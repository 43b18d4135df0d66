import asyncio
import datetime as dt
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web
from envoy.service.ext_proc.v3.external_processor_pb2_grpc import ExternalProcessorStub
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from kvtier.errors import InvalidSettings
from kvtier.router.epp import certificates
from kvtier.router.epp.process import Process, ProcessDependencies, ProcessOptions
from kvtier.router.fleet.replicas import Replica, StaticDiscovery
from kvtier.router.learn.prompts import PromptBuilder
from tests.router.epp.fleets import Characters, First
from tests.router.epp.protocol import destination, request_body, request_headers

SERVING = health_pb2.HealthCheckResponse.SERVING


class Silent:
    """A discovery that lists its replicas only after `speak` is set."""

    def __init__(self) -> None:
        self.speak = asyncio.Event()
        self.replicas: list[Replica] = []

    async def watch(self) -> Any:
        await self.speak.wait()
        yield self.replicas


def dependencies(discovery: Any) -> ProcessDependencies:
    return ProcessDependencies(discovery=discovery, chooser=First(), prompts=Characters())


def options(**fields: Any) -> ProcessOptions:
    usual = {"port": 0, "health_port": 0, "metrics_port": 0, "is_secure": False, "drain_s": 0.0}
    return ProcessOptions(**{**usual, **fields})


async def replica(may_answer: asyncio.Event) -> tuple[web.AppRunner, str]:
    async def models(request: web.Request) -> web.Response:
        await may_answer.wait()
        return web.json_response({"object": "list", "data": [{"id": "m"}]})

    application = web.Application()
    application.router.add_get("/health", models)
    application.router.add_get("/v1/models", models)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"127.0.0.1:{runner.addresses[0][1]}"


async def status(port: int, service: str) -> int:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        found: int = (await HealthStub(channel).Check(request)).status
        return found


def test_readiness_follows_discovery_and_first_health_checks() -> None:
    async def run() -> None:
        may_answer = asyncio.Event()
        runner, address = await replica(may_answer)
        discovery = Silent()
        process = Process(options(), dependencies(discovery))
        starting = asyncio.create_task(process.start())
        while not process.metrics_port:
            await asyncio.sleep(0.001)
        while True:
            try:
                assert await status(process.health_port, "liveness") == SERVING
                break
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.001)
        assert await status(process.health_port, "readiness") != SERVING
        discovery.replicas = [Replica(name="a", url=f"http://{address}")]
        discovery.speak.set()
        while not process.fleet.members:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        assert await status(process.health_port, "readiness") != SERVING, (
            "no replica has been checked yet"
        )
        may_answer.set()
        await starting
        assert await status(process.health_port, "readiness") == SERVING
        async with grpc.aio.insecure_channel(f"127.0.0.1:{process.port}") as channel:
            call = ExternalProcessorStub(channel).Process()
            await call.write(request_headers(ends=True))
            assert destination(await call.read()) == address
        url = f"http://127.0.0.1:{process.metrics_port}/metrics"
        text = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
        assert "kvtier_epp_ready_endpoints 1.0" in text
        await process.drain()
        await process.close()
        await process.close()
        await runner.cleanup()

    asyncio.run(run())


def test_discovery_that_cannot_start_fails_start() -> None:
    class H2ProtocolError:
        async def watch(self) -> Any:
            raise InvalidSettings("no such file")
            yield ()

    async def run() -> None:
        process = Process(options(), dependencies(H2ProtocolError()))
        with pytest.raises(InvalidSettings, match="no such file"):
            await process.start()
        await process.close()

    asyncio.run(run())


def test_taken_port_is_reported_with_flag_and_address() -> None:
    async def run() -> None:
        first = Process(options(), dependencies(StaticDiscovery([])))
        await first.start()
        for flag, name, port in (
            ("--grpc-port", "port", first.port),
            ("--grpc-health-port", "health_port", first.health_port),
            ("--metrics-port", "metrics_port", first.metrics_port),
        ):
            second = Process(options(**{name: port}), dependencies(StaticDiscovery([])))
            with pytest.raises(InvalidSettings) as caught:
                await second.start()
            assert str(caught.value) == (
                f"--host, {flag}: 127.0.0.1:{port} cannot be listened on: Address already in use"
            )
            await second.close()
        await first.close()

    asyncio.run(run())


def test_unknown_model_is_refused_before_prompt_is_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    body = b'{"model": "evil\\r\\n", "prompt": "x"}'

    async def run() -> None:
        may_answer = asyncio.Event()
        may_answer.set()
        runner, address = await replica(may_answer)
        discovery = StaticDiscovery([Replica(name="a", url=f"http://{address}")])
        prompts = PromptBuilder()
        process = Process(
            options(), ProcessDependencies(discovery=discovery, chooser=First(), prompts=prompts)
        )
        await process.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{process.port}") as channel:
            call = ExternalProcessorStub(channel).Process()
            await call.write(request_headers())
            await call.write(request_body(body))
            answer = await call.read()
            assert answer.immediate_response.status.code == 404
            assert rb"`evil\\r\\n` does not exist" in answer.immediate_response.body
        await process.close()
        await runner.cleanup()

    asyncio.run(run())
    assert "compared by characters" not in caplog.text


def test_certificate_files_are_used_and_reloaded(tmp_path: Path) -> None:
    def write() -> certificates.CertificatePair:
        pair = certificates.self_signed(dt.datetime.now(dt.UTC))
        (tmp_path / "k").write_bytes(pair.key)
        (tmp_path / "c").write_bytes(pair.certificate)
        return pair

    async def reach(process: Process, pair: certificates.CertificatePair) -> None:
        trusted = grpc.ssl_channel_credentials(pair.certificate)
        async with grpc.aio.secure_channel(f"localhost:{process.port}", trusted) as channel:
            async with asyncio.timeout(10):
                await channel.channel_ready()

    async def run() -> None:
        first = write()
        process = Process(
            options(is_secure=True, certificate=tmp_path / "c", key=tmp_path / "k"),
            dependencies(StaticDiscovery([])),
        )
        await process.start()
        await reach(process, first)
        await reach(process, write())
        (tmp_path / "k").write_text("half written")
        await process.close()

    asyncio.run(run())
    with pytest.raises(InvalidSettings):
        Process(
            options(is_secure=True, certificate=tmp_path / "c", key=tmp_path / "k"),
            dependencies(StaticDiscovery([])),
        )
