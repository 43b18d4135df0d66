"""A WebSocket through the router; client and replica are aiohttp's."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from kvtier.router.fleet.replicas import StaticDiscovery, parse_replica
from kvtier.router.route.server import Router
from tests.router.route.routers import router_over, run, until


class Realtime:
    """A replica whose WebSocket echoes everything in capitals."""

    def __init__(self) -> None:
        self.asked: list[web.BaseRequest] = []
        self.closed = 0
        self.refuses = False

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path != "/v1/realtime":
            return web.json_response({"data": [{"id": "m"}]})
        self.asked.append(request)
        if self.refuses:
            return web.json_response({"error": "no"}, status=403)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        try:
            await self.talk(socket)
        finally:
            self.closed += 1
        return socket

    async def talk(self, socket: web.WebSocketResponse) -> None:
        await socket.send_str("hello")
        async for message in socket:
            if message.data == "end":
                return
            if message.type is aiohttp.WSMsgType.TEXT:
                await socket.send_str(message.data.upper())
            else:
                await socket.send_bytes(message.data)


@asynccontextmanager
async def realtime(**options: object) -> AsyncIterator[tuple[Realtime, Router]]:
    replica = Realtime()
    runner = web.ServerRunner(
        web.Server(replica.handle, handler_cancellation=True), shutdown_timeout=0.1
    )
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    found = parse_replica(f"http://127.0.0.1:{runner.addresses[0][1]},name=a", "test")
    async with router_over([], discovery=StaticDiscovery([found]), **options) as router:
        yield replica, router
    await runner.cleanup()


def url(router: Router, query: str = "") -> str:
    return f"http://127.0.0.1:{router.port}/v1/realtime{query}"


def test_websocket_passes_messages_in_both_directions() -> None:
    async def test() -> None:
        async with realtime() as (replica, router), aiohttp.ClientSession() as client:
            async with client.ws_connect(
                url(router, "?model=m"), max_msg_size=0, protocols=["realtime"]
            ) as socket:
                assert await socket.receive_str() == "hello"
                for word in ("one", "two"):
                    await socket.send_str(word)
                    assert await socket.receive_str() == word.upper()
                large = bytes(range(256)) * 12_000
                await socket.send_bytes(large)
                assert await socket.receive_bytes() == large
                (member,) = router.fleet.members
                assert member.endpoint.in_flight == 1
                await socket.send_str("end")
                assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE
            await until(lambda: member.endpoint.in_flight == 0, "the socket is no load any more")
            (asked,) = replica.asked
            assert asked.headers["Sec-WebSocket-Protocol"] == "realtime"
            assert asked.headers["x-request-id"]

    run(test())


def test_websocket_end_is_passed_on() -> None:
    async def test() -> None:
        async with realtime() as (replica, router), aiohttp.ClientSession() as client:
            socket = await client.ws_connect(url(router))
            assert await socket.receive_str() == "hello"
            await socket.close()
            await until(lambda: replica.closed == 1, "the replica is cancelled")
            (member,) = router.fleet.members
            await until(lambda: member.endpoint.in_flight == 0, "the socket is no load any more")

    run(test())


def test_bytes_sent_before_upgrade_answer_arrive_after_it() -> None:
    async def test() -> None:
        async with realtime() as (_, router):
            reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
            text = bytes((0x81, 0x83, 0, 0, 0, 0)) + b"abc"  # masked by nothing
            writer.write(
                b"GET /v1/realtime HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\n"
                b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n" + text
            )
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 101 ")
            assert b"upgrade: websocket\r\n" in head
            assert b"target-pod: 127.0.0.1:" in head
            assert await reader.readexactly(7 + 5) == b"\x81\x05hello\x81\x03ABC"
            writer.close()

    run(test())


def test_websocket_refusal_of_replica_is_passed_on() -> None:
    async def test() -> None:
        async with realtime() as (replica, router), aiohttp.ClientSession() as client:
            replica.refuses = True
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                await client.ws_connect(url(router))
            assert caught.value.status == 403

    run(test())


@pytest.mark.parametrize(
    ("query", "status"), [("?model=none", 404), ("?model=m", 101), ("?model=", 101)]
)
def test_websocket_goes_to_replica_of_model_in_query(query: str, status: int) -> None:
    async def test() -> None:
        async with realtime() as (_, router), aiohttp.ClientSession() as client:
            if status == 101:
                await (await client.ws_connect(url(router, query))).close()
                return
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                await client.ws_connect(url(router, query))
            assert caught.value.status == status

    run(test())


def test_websocket_counts_as_load_and_needs_room() -> None:
    async def test() -> None:
        async with realtime(in_flight=1) as (_, router), aiohttp.ClientSession() as client:
            first = await client.ws_connect(url(router))
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                await client.ws_connect(url(router))
            assert caught.value.status == 429
            await first.close()
            (member,) = router.fleet.members
            await until(lambda: member.endpoint.in_flight == 0, "there is room again")
            await (await client.ws_connect(url(router))).close()

    run(test())


def test_websocket_path_without_upgrade_is_426() -> None:
    async def test() -> None:
        async with realtime() as (replica, router), aiohttp.ClientSession() as client:
            async with client.get(url(router)) as answer:
                assert answer.status == 426
                assert answer.headers["Upgrade"] == "websocket"
            assert not replica.asked

    run(test())


def test_idle_websocket_is_cut_off() -> None:
    async def test() -> None:
        async with realtime(idle_timeout=0.1) as (replica, router), aiohttp.ClientSession() as one:
            socket = await one.ws_connect(url(router))
            assert await socket.receive_str() == "hello"
            assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSED
            await until(lambda: replica.closed == 1, "the replica is released")

    run(test())
