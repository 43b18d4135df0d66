"""A picker on its ports, and a gateway that uses it over real gRPC."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest
from envoy.service.ext_proc.v3.external_processor_pb2_grpc import ExternalProcessorStub

from kvtier.router.epp import certificates
from kvtier.router.epp.conversation import BodyMode, GatewayRequest
from kvtier.router.epp.h2.limits import MemoryBudget
from kvtier.router.epp.health import HealthService
from kvtier.router.epp.metering import PickerMeter
from kvtier.router.epp.picking import FleetPicking, PickingOptions, Placement
from kvtier.router.epp.process import PickerServer
from kvtier.router.epp.service import ExtProcService, StreamOptions
from tests.router.epp.fleets import Characters, First, fleet_of

DUPLEX = {"mode": BodyMode.FULL_DUPLEX}
BROKEN_OFF = "Internal error from Core"
"""The client library's message if a stream ends during a write."""


class Failing:
    async def choose(self, asked: GatewayRequest) -> Placement:
        raise RuntimeError("a bug")


class Slow:
    async def choose(self, asked: GatewayRequest) -> Placement:
        await asyncio.sleep(60)
        raise AssertionError


class Gateway:
    def __init__(
        self,
        server: PickerServer,
        port: int,
        channel: grpc.aio.Channel,
        fleet: Any,
        meter: PickerMeter,
        held: MemoryBudget,
    ) -> None:
        self.server = server
        self.port = port
        self.held = held
        self.channel = channel
        self.fleet = fleet
        self.meter = meter

    async def exchange(self, *messages: ProcessingRequest, ends: bool = True) -> list[Any]:
        """Send the messages; return every answer until the picker ends the stream."""
        call = ExternalProcessorStub(self.channel).Process()
        for message in messages:
            try:
                await call.write(message)
            except grpc.aio.AioRpcError:
                break
            except asyncio.InvalidStateError:
                break
        if ends:
            await call.done_writing()
        async with asyncio.timeout(10):
            return [answer async for answer in call]

    async def settled(self) -> None:
        """Wait until the picker has released everything, which may be after the stream's end."""
        async with asyncio.timeout(10):
            while self.meter.open_streams:
                await asyncio.sleep(0.001)
        assert not any(member.endpoint.in_flight for member in self.fleet.members)


@asynccontextmanager
async def served(
    options: StreamOptions | None = None, picking: Any = None, *, secure: bool = False
) -> AsyncIterator[Gateway]:
    fleet = fleet_of()
    meter = PickerMeter()
    picking = picking or FleetPicking(fleet, First(), Characters(), PickingOptions())

    def arrive(choice: Placement) -> Any:
        return fleet.add_load(choice.endpoint, choice.tokens, choice.missing_tokens)

    options = options or StreamOptions()
    picker = ExtProcService(picking, meter, options, observer=arrive)
    server = PickerServer(picker, HealthService())
    pair = certificates.self_signed(dt.datetime.now(dt.UTC))
    port = server.bind("127.0.0.1", 0, certificates.context(pair) if secure else None)
    server.bind_probes("127.0.0.1", 0)
    await server.start()
    server.health.ready(is_ready=True)
    address = f"localhost:{port}"
    if secure:
        trusted = grpc.ssl_channel_credentials(pair.certificate)
        channel = grpc.aio.secure_channel(address, trusted)
    else:
        channel = grpc.aio.insecure_channel(address)
    try:
        yield Gateway(server, port, channel, fleet, meter, picker.held)
    finally:
        await channel.close()
        await server.stop(0, 0)


def run(
    test: Callable[[Gateway], Awaitable[None]],
    options: StreamOptions | None = None,
    picking: Any = None,
    *,
    secure: bool = False,
) -> None:
    async def go() -> None:
        async with served(options, picking, secure=secure) as gateway:
            await test(gateway)

    asyncio.run(go())
