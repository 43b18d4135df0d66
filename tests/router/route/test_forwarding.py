import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from kvtier.router.fleet.replicas import StaticDiscovery, parse_replica
from kvtier.router.route import forwarding
from tests.router.replicas import DONE, EVENT
from tests.router.route.routers import router_over, run, stand, until


@asynccontextmanager
async def router_before(answer: bytes) -> AsyncIterator[int]:
    """Yield the port of a router whose replica answers requests with these bytes and closes."""

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        is_check = head.startswith(b"GET /health ")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" if is_check else answer)
        writer.close()

    async with await asyncio.start_server(say, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        found = parse_replica(f"http://127.0.0.1:{port},model=m", "test")
        async with router_over([], discovery=StaticDiscovery([found])) as router:
            yield router.port


def test_stream_is_passed_on_unchanged_and_at_once() -> None:
    async def test() -> None:
        async with stand() as at:
            (a,) = at.replicas
            a.chunk_delay_s = 0.02
            async with at.post(stream=True) as answer:
                assert answer.headers["Content-Type"] == "text/event-stream"
                assert answer.headers["Transfer-Encoding"] == "chunked"
                pieces = [piece async for piece in answer.content.iter_any()]
            assert b"".join(pieces) == EVENT * 4 + DONE
            assert len(pieces) >= 4, "chunks are passed on one by one"

    run(test())


def test_stream_whose_replica_dies_ends_without_end_marker() -> None:
    async def test() -> None:
        async with stand(count=2) as at:
            for replica in at.replicas:
                replica.dies_after = 2
                replica.chunk_delay_s = 0.01
            async with at.post(stream=True) as answer:
                assert await answer.content.readexactly(2 * len(EVENT)) == EVENT * 2
                with pytest.raises(aiohttp.ClientPayloadError):
                    await answer.content.readany()
            assert sum(len(replica.requests) for replica in at.replicas) == 1
            assert await at.metric('kvtier_route_requests_total{outcome="failed"}') == 1

    run(test())


def test_broken_stream_resets_client_of_http_1_0() -> None:
    async def test() -> None:
        async with stand() as at:
            at.replicas[0].dies_after = 2
            at.replicas[0].chunk_delay_s = 0.05
            reader, writer = await asyncio.open_connection("127.0.0.1", at.router.port)
            body = b'{"model":"m","stream":true}'
            writer.write(
                b"POST /v1/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()

    run(test())


def test_client_disconnect_stops_replica() -> None:
    async def test() -> None:
        async with stand() as at:
            (a,) = at.replicas
            a.chunks, a.chunk_delay_s = 10_000, 0.01
            async with at.post(stream=True) as answer:
                await answer.content.readany()
            await until(lambda: a.cancelled == 1, "the replica is cancelled while it streams")
            a.held.clear()
            asking = asyncio.ensure_future(at.post().__aenter__())
            await until(lambda: len(a.requests) == 2, "the request arrives")
            asking.cancel()
            await until(lambda: a.cancelled == 2, "the replica is cancelled before it answers")
            (member,) = at.router.fleet.members
            await until(lambda: member.endpoint.in_flight == 0, "nothing is in flight")
            assert await at.metric('kvtier_route_requests_total{outcome="cancelled"}') == 2
            a.held.set()
            assert member.is_available, "the replica stays available"

    run(test())


def test_slow_client_slows_down_replica() -> None:
    async def test() -> None:
        async with stand() as at:
            (a,) = at.replicas
            a.chunk, a.chunks = b"x" * 100_000, 1000
            written, reads_on = 0, asyncio.Event()

            async def reading() -> int:
                async with at.post(stream=True) as answer:
                    await reads_on.wait()
                    return sum([len(piece) async for piece in answer.content.iter_any()])

            client = asyncio.ensure_future(reading())
            await until(lambda: bool(a.requests), "the request arrives")
            transport = a.requests[0].transport
            assert transport is not None
            await until(transport.get_write_buffer_size, "the replica is slowed down")
            await asyncio.sleep(0.3)
            assert a.chunks_sent < 200, "the pending bytes are in sockets, not in the router"
            reads_on.set()
            written = await client
            assert written == 100_000 * 1000 + len(DONE)

    run(test())


def test_idle_stream_is_cut_off() -> None:
    async def test() -> None:
        async with stand(idle_timeout=0.1) as at:
            at.replicas[0].chunk_delay_s = 5.0
            async with at.post(stream=True) as answer:
                with pytest.raises(aiohttp.ClientPayloadError):
                    await answer.read()
            await until(lambda: at.replicas[0].cancelled == 1, "the replica is released")

    run(test())


def test_answer_that_begins_too_late_is_504_and_not_retried() -> None:
    async def test() -> None:
        async with stand(count=2, first_byte_timeout=0.1) as at:
            for replica in at.replicas:
                replica.first_delay_s = 5.0
            async with at.post() as answer:
                assert answer.status == 504
                assert (await answer.json())["error"]["code"] == "gateway_timeout"
            assert sum(len(replica.requests) for replica in at.replicas) == 1

    run(test())


def test_answer_in_pieces_arrives_complete() -> None:
    async def test() -> None:
        async with stand() as at:
            at.replicas[0].padding = " " * 1_000_000 + "."
            async with at.post() as answer:
                body = await answer.read()
                assert answer.content_length == len(body) > 1_000_000
                assert body.endswith(b" .")

    run(test())


@pytest.mark.parametrize("status", [400, 404, 422, 500])
def test_error_of_replica_is_passed_on_unchanged(status: int) -> None:
    async def test() -> None:
        async with stand(count=2) as at:
            for replica in at.replicas:
                replica.status = status
            async with at.post() as answer:
                assert answer.status == status
                assert (await answer.json())["object"] == "text_completion"
            assert sum(len(replica.requests) for replica in at.replicas) == 1

    run(test())


def test_busy_replica_with_endless_body_is_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forwarding, "_BUSY_S", 0.1)

    async def hang(request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "GET":
            return web.json_response({"data": [{"id": "m"}]})
        out = web.StreamResponse(status=503)
        out.content_length = 100
        await out.prepare(request)
        await out.write(b"part")
        await asyncio.sleep(60)
        return out

    async def test() -> None:
        runner = web.ServerRunner(web.Server(hang, handler_cancellation=True), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        found = parse_replica(f"http://127.0.0.1:{runner.addresses[0][1]}", "test")
        async with (
            router_over([], discovery=StaticDiscovery([found])) as router,
            aiohttp.ClientSession() as client,
            client.post(
                f"http://127.0.0.1:{router.port}/v1/completions", json={"model": "m"}
            ) as answer,
        ):
            assert answer.status == 503
            assert await answer.read() == b""
        await runner.cleanup()

    run(test())


@pytest.mark.parametrize(
    ("answer", "length"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"content-length: 5\r\n"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    ],
)
def test_answer_to_head_has_no_body(answer: bytes, length: bytes) -> None:
    async def test() -> None:
        async with router_before(answer) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"HEAD /version HTTP/1.1\r\nHost: h\r\n\r\n")
            writer.write(b"GET /livez HTTP/1.1\r\nHost: h\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(answer.partition(b"\r\n")[0])
            assert b"transfer-encoding" not in head
            assert (b"content-length" in head, length in head) == (bool(length), True)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
            writer.close()

    run(test())


def test_replica_that_upgrades_and_disconnects_is_passed_on() -> None:
    switch = b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"

    async def test() -> None:
        async with router_before(switch) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(
                b"GET /v1/realtime HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\n"
                b"Upgrade: websocket\r\n\r\n"
            )
            head = await reader.read()
            assert head.startswith(b"HTTP/1.1 101 ")
            assert b"upgrade: websocket\r\n" in head
            assert b"content-length" not in head
            writer.close()

    run(test())
