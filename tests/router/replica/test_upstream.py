import pytest

from kvtier.router.fleet.members import Fleet
from kvtier.router.fleet.replicas import parse_replica
from kvtier.router.replica import upstream
from kvtier.router.replica.exchange import BrokenOff, ReplicaExchange
from kvtier.router.replica.upstream import Unreachable, Upstream, Upstreams
from tests.router.replicas import replicas
from tests.router.route.routers import run, until


async def read(exchange: ReplicaExchange) -> bytes:
    await exchange.begin()
    return await exchange.read(1 << 20)


def test_connections_are_reused_and_closed_at_the_end() -> None:
    async def test() -> None:
        async with replicas() as (a,):
            one = Upstream(parse_replica(a.url, "test"), 1.0, None)
            for _ in range(3):
                exchange = await one.send("POST", "/v1/x?a=%2F", b"", b"{}")
                assert (await exchange.begin()).status == 200
                await read(exchange)
            assert len({request.transport for request in a.requests}) == 1
            assert {request.raw_path for request in a.requests} == {"/v1/x?a=%2F"}
            await one.close()

    run(test())


def test_request_is_forwarded_unchanged() -> None:
    async def test() -> None:
        async with replicas() as (a,):
            one = Upstream(parse_replica(a.url, "test"), 1.0, None)
            await read(await one.send("POST", "/v1/x", b"a: b\r\n", b"{}"))
            assert {name.lower() for name in a.requests[0].headers} == {
                *("host", "a", "content-length")
            }
            await one.close()

    run(test())


def test_unreachable_replica_is_an_error() -> None:
    async def test() -> None:
        one = Upstream(parse_replica("http://127.0.0.1:1", "test"), 1.0, None)
        with pytest.raises(Unreachable):
            await one.send("GET", "/", b"", None)
        await one.close()

    run(test())


def test_member_has_connections_until_removed() -> None:
    async def test() -> None:
        async with replicas() as (a,):
            fleet, upstreams = Fleet(), Upstreams(1.0)
            fleet.add_listener(upstreams)
            fleet.update([parse_replica(a.url, "test")])
            endpoint = fleet.members[0].endpoint
            one = upstreams(endpoint)
            await read(await one.send("GET", "/health", b"", None))
            fleet.update([])
            await upstreams.close()
            with pytest.raises(KeyError):
                upstreams(endpoint)
            with pytest.raises(Unreachable, match="was removed"):
                await one.send("GET", "/", b"", None)

    run(test())


def test_idle_connection_is_closed_and_not_reused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        async with replicas() as (a,):
            one = Upstream(parse_replica(a.url, "test"), 1.0, None)
            monkeypatch.setattr(upstream, "KEEP_ALIVE_S", 60.0)
            await read(await one.send("POST", "/v1/x", b"", b"{}"))
            monkeypatch.setattr(upstream, "KEEP_ALIVE_S", 0.0)
            await read(await one.send("POST", "/v1/x", b"", b"{}"))
            first, second = (request.transport for request in a.requests)
            assert first is not second, "the idle connection was too old"
            await one.close()
            monkeypatch.setattr(upstream, "KEEP_ALIVE_S", 0.05)
            another = Upstream(parse_replica(a.url, "test"), 1.0, None)
            await read(await another.send("POST", "/v1/x", b"", b"{}"))
            await until(lambda: a.requests[-1].transport is None, "the idle connection closing")
            await another.close()

    run(test())


def test_close_fails_requests_in_flight() -> None:
    async def test() -> None:
        async with replicas() as (a,):
            one = Upstream(parse_replica(a.url, "test"), 1.0, None)
            a.held.clear()
            exchange = await one.send("POST", "/v1/x", b"", b"{}")
            await until(lambda: a.requests, "the request arriving")
            await one.close()
            with pytest.raises(BrokenOff):
                await exchange.begin()

    run(test())
