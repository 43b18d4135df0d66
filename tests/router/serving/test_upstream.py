import pytest

from kvtier.router.fleet import Fleet
from kvtier.router.replicas import parse_replica
from kvtier.router.serving.exchange import Exchange
from kvtier.router.serving.upstream import Unreachable, Upstream, Upstreams
from tests.router.http.routers import run
from tests.router.replicas import replicas


async def read(exchange: Exchange) -> bytes:
    await exchange.begin()
    return await exchange.read(1 << 20)


def test_connections_are_used_again_and_closed_at_the_end() -> None:
    async def test() -> None:
        async with replicas() as (a,):
            upstream = Upstream(parse_replica(a.url, "test"), 1.0, None)
            for _ in range(3):
                exchange = await upstream.send("POST", "/v1/x?a=%2F", b"", b"{}")
                assert (await exchange.begin()).status == 200
                await read(exchange)
            assert len({request.transport for request in a.requests}) == 1
            assert {request.raw_path for request in a.requests} == {"/v1/x?a=%2F"}
            await upstream.close()

    run(test())


def test_nothing_is_added_to_what_a_client_said() -> None:
    async def test() -> None:
        async with replicas() as (a,):
            upstream = Upstream(parse_replica(a.url, "test"), 1.0, None)
            await read(await upstream.send("POST", "/v1/x", b"a: b\r\n", b"{}"))
            assert {name.lower() for name in a.requests[0].headers} == {
                *("host", "a", "content-length")
            }
            await upstream.close()

    run(test())


def test_who_is_not_there_is_an_error() -> None:
    async def test() -> None:
        upstream = Upstream(parse_replica("http://127.0.0.1:1", "test"), 1.0, None)
        with pytest.raises(Unreachable):
            await upstream.send("GET", "/", b"", None)
        await upstream.close()

    run(test())


def test_each_member_has_connections_until_it_has_left() -> None:
    async def test() -> None:
        async with replicas() as (a,):
            fleet, upstreams = Fleet(), Upstreams(1.0)
            fleet.listen(upstreams)
            fleet.update([parse_replica(a.url, "test")])
            endpoint = fleet.members[0].endpoint
            upstream = upstreams(endpoint)
            await read(await upstream.send("GET", "/health", b"", None))
            fleet.update([])
            await upstreams.close()
            with pytest.raises(KeyError):
                upstreams(endpoint)
            with pytest.raises(Unreachable, match="has left"):
                await upstream.send("GET", "/", b"", None)

    run(test())
