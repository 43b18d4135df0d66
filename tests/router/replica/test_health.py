import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from kvtier.clock import MonotonicClock
from kvtier.router.choose.base import Endpoint
from kvtier.router.fleet.members import Fleet, FleetListener, FleetMember, ReplicaHealth
from kvtier.router.fleet.models import MAX_BYTES
from kvtier.router.fleet.replicas import Replica, parse_replica
from kvtier.router.replica.health import Prober
from kvtier.router.replica.upstream import Upstream
from tests.router.replicas import replicas
from tests.router.route.routers import run, until

TIMEOUT_S = 0.3


class Connections(FleetListener):
    def __init__(self) -> None:
        self.of: dict[Endpoint, Upstream] = {}

    def added(self, member: FleetMember) -> None:
        self.of[member.endpoint] = Upstream(member.replica, 1.0, None)


@asynccontextmanager
async def watched(*named: Replica, key: str | None = None) -> AsyncIterator[Fleet]:
    fleet = Fleet()
    connections = Connections()
    fleet.add_listener(connections)
    prober = Prober(
        fleet,
        connections.of.__getitem__,
        MonotonicClock(),
        interval_s=0.01,
        timeout_s=TIMEOUT_S,
        key=key,
    )
    fleet.update(named)
    await prober.first_round()
    try:
        yield fleet
    finally:
        await prober.close()
        for upstream in connections.of.values():
            await upstream.close()


def test_first_round_ends_after_each_member_was_checked() -> None:
    async def test() -> None:
        async with replicas("m", "lora") as (a,):
            dead = parse_replica("http://127.0.0.1:1,name=dead", "test")
            async with watched(parse_replica(a.url, "test"), dead) as fleet:
                healthy, refused = fleet.members
                assert healthy.endpoint.models == {"m", "lora"}
                assert refused.health is ReplicaHealth.UNHEALTHY
                assert refused.reason.startswith("unreachable")

    run(test())


def test_health_checks_notice_failure_and_recovery() -> None:
    async def test() -> None:
        async with replicas("m") as (a,), watched(parse_replica(a.url, "test")) as fleet:
            (member,) = fleet.members
            port = a.port
            a.health_status = 503
            await until(lambda: not member.is_available, "the failed status being noticed")
            assert member.reason == "invalid response: /health returned status 503"
            a.health_status = 200
            await until(lambda: member.is_available, "the member recovering")
            await a.stop()
            await until(lambda: not member.is_available, "the stopped replica being noticed")
            await a.start(port)
            await until(lambda: member.is_available, "the restarted replica being noticed")
            a.models.append("lora")
            await until(lambda: "lora" in member.endpoint.models, "the new adapter being noticed")

    run(test())


def test_draining_member_is_not_checked_or_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")

    async def test() -> None:
        async with replicas("m") as (a,), watched(parse_replica(a.url, "test")) as fleet:
            (member,) = fleet.members
            await until(lambda: "takes requests" in caplog.text, "the member becoming available")
            stay = fleet.add_load(member.endpoint, 1, 1)
            fleet.update([])
            watches = [one for one in asyncio.all_tasks() if "_watch" in repr(one.get_coro())]
            await until(lambda: all(one.done() for one in watches), "the checks ending")
            assert fleet.draining == (member,)
            stay.end()
            assert fleet.draining == ()
        assert "takes no requests" not in caplog.text

    run(test())


def test_configured_models_are_not_fetched() -> None:
    async def test() -> None:
        async with (
            replicas("m") as (a,),
            watched(parse_replica(f"{a.url},model=n", "test")) as fleet,
        ):
            assert fleet.members[0].endpoint.models == {"n"}

    run(test())


def test_replica_with_invalid_or_missing_response_is_unhealthy() -> None:
    async def test() -> None:
        answers = [b""]

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            keys.append(request.headers.get("Authorization"))
            if request.path == "/health":
                return web.Response()
            answer = answers[-1]
            if answer == b"hang":
                await until(lambda: False, "a response")
            return web.Response(body=answer, content_type="application/json")

        keys: list[str | None] = []
        runner = web.ServerRunner(web.Server(handle), shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        replica = parse_replica(f"http://127.0.0.1:{port}", "test")
        async with watched(replica, key="secret") as fleet:
            (member,) = fleet.members
            for answer, said in (
                (b"{", "invalid response"),
                (b'{"data":5}', "invalid response"),
                (b'{"data":[{"id":5}]}', "invalid response"),
                (b'{"data":[' + b"[" * 100_000, "invalid response"),
                (b'{"data":[]}' + b" " * MAX_BYTES, "more than"),
                (b"hang", "no answer within"),
            ):
                answers.append(answer)
                member.reason = ""
                await until(lambda said=said: said in member.reason, said)  # type: ignore[misc]
                assert not member.is_available
            answers.append(b'{"data":[{"id":"m"}]}')
            await until(lambda: member.is_available, "the member recovering")
        assert set(keys) == {"Bearer secret"}
        await runner.cleanup()

    run(test())
