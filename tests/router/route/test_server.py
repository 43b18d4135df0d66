import asyncio
import datetime as dt
import os
import ssl
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from kvtier.errors import InvalidSettings
from kvtier.router.assembly import Choices
from kvtier.router.epp.certificates import self_signed
from kvtier.router.fleet.members import FleetListener, FleetMember
from kvtier.router.fleet.replicas import FileDiscovery, Replica, StaticDiscovery, parse_replica
from kvtier.router.learn import prompts
from kvtier.router.learn.prompts import PromptBuilder
from kvtier.router.route.keys import ApiKeys
from kvtier.router.route.options import RouteOptions
from kvtier.router.route.server import Router, RouterDependencies
from tests.router.replicas import DONE, EVENT, replicas
from tests.router.route.routers import FAST, InTurn, Texts, router_over, run, stand, until


def wiring(**fields: object) -> RouterDependencies:
    given = {
        "discovery": StaticDiscovery([]),
        "choices": Choices(InTurn()),
        "prompts": Texts(),
        "keys": ApiKeys([]),
        **fields,
    }
    return RouterDependencies(**given)  # type: ignore[arg-type]


def certificate(folder: Path) -> tuple[str, str]:
    pair = self_signed(dt.datetime.now(dt.UTC))
    (folder / "key.pem").write_bytes(pair.key)
    (folder / "cert.pem").write_bytes(pair.certificate)
    return str(folder / "cert.pem"), str(folder / "key.pem")


def test_address_in_use_is_refused_and_nothing_left() -> None:
    async def test() -> None:
        async with stand() as at:
            second = Router(RouteOptions(**{**FAST, "port": at.router.port}), wiring())
            with pytest.raises(InvalidSettings) as caught:
                await second.start()
            assert str(caught.value) == (
                f"--host, --port: 127.0.0.1:{at.router.port} cannot be listened on: "
                "Address already in use"
            )
            await second.close()

    run(test())


def test_unreadable_replicas_are_refused() -> None:
    async def test() -> None:
        router = Router(
            RouteOptions(**FAST), wiring(discovery=FileDiscovery("/nowhere/replicas.yaml"))
        )
        with pytest.raises(InvalidSettings, match=r"replicas\.yaml"):
            await router.start()
        await router.close()

    run(test())


def test_discovery_that_fails_later_is_logged_and_fleet_stays(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken:
        async def watch(self) -> AsyncIterator[Sequence[Replica]]:
            yield [parse_replica("http://127.0.0.1:1", "test")]
            await asyncio.sleep(0.05)
            raise ZeroDivisionError

    async def test() -> None:
        router = Router(RouteOptions(**FAST), wiring(discovery=Broken()))
        await router.start()
        await until(lambda: "the discovery of replicas has failed" in caplog.text, "it is logged")
        assert len(router.fleet.members) == 1
        await router.close()

    run(test())


def test_reload_of_replicas_drops_no_request(tmp_path: Path) -> None:
    async def test() -> None:
        file = tmp_path / "replicas.yaml"

        def list_replicas(*listed: object) -> None:
            (tmp_path / "new").write_text(f"replicas: {[made.url for made in listed]}")  # type: ignore[attr-defined]
            os.replace(tmp_path / "new", file)

        async with replicas(count=3) as (a, b, c):
            list_replicas(a, b)
            for replica in (a, b, c):
                replica.chunk_delay_s = 0.02
            async with (
                router_over([], discovery=FileDiscovery(str(file), poll_s=0.02)) as router,
                aiohttp.ClientSession() as client,
            ):
                url = f"http://127.0.0.1:{router.port}/v1/completions"
                ended = asyncio.Event()

                async def ask() -> int:
                    answered = 0
                    while not ended.is_set():
                        body = {"model": "m", "stream": True}
                        async with client.post(url, json=body) as answer:
                            assert answer.status == 200
                            assert await answer.read() == EVENT * 4 + DONE
                            answered += 1
                    return answered

                asking = [asyncio.ensure_future(ask()) for _ in range(8)]
                for listed in ((b, c), (c,), (a, c), (a,), (a, b, c)):
                    await asyncio.sleep(0.1)
                    list_replicas(*listed)
                await until(lambda: len(router.fleet.members) == 3, "the last list has been read")
                ended.set()
                assert sum(await asyncio.gather(*asking)) > 20
                await until(lambda: not router.fleet.draining, "no replica is draining")
            assert c.requests

    run(test())


def test_drain_completes_requests_and_accepts_none() -> None:
    async def test() -> None:
        async with stand() as at:
            (a,) = at.replicas
            a.held.clear()
            asking = asyncio.ensure_future(at.post(stream=True).__aenter__())
            await until(lambda: bool(a.requests), "the request arrives")
            draining = asyncio.ensure_future(at.router.drain())
            await asyncio.sleep(0.02)
            assert not draining.done()
            with pytest.raises(OSError):  # noqa: PT011
                await asyncio.open_connection("127.0.0.1", at.router.port)
            a.held.set()
            assert await (await asking).read() == EVENT * 4 + DONE
            await draining

    run(test())


def test_drain_reports_unhealthy_before_it_stops_listening(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")

    async def test() -> None:
        async with stand(drain=600.0) as at:
            draining = asyncio.ensure_future(at.router.drain())
            await until(lambda: "/health says 503 for 600 s" in caplog.text, "it is logged")
            async with at.client.get(at.url + "/health") as answer:
                assert answer.status == 503
                assert answer.headers["connection"] == "close"
            async with at.post() as answer:
                assert answer.status == 200
                assert answer.headers["connection"] == "close"
            async with at.post(stream=True) as answer:
                assert await answer.read() == EVENT * 4 + DONE
            assert not draining.done()
            draining.cancel()
            await asyncio.gather(draining, return_exceptions=True)

    run(test())


def test_drained_router_refuses_connections(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    async def test() -> None:
        async with stand(drain=0.05) as at:
            await at.router.drain()
            with pytest.raises(OSError):  # noqa: PT011
                await asyncio.open_connection("127.0.0.1", at.router.port)

    run(test())
    assert "/health says 503 for 0.05 s" in caplog.text


def test_drain_asked_for_ends_when_no_request_is_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")

    async def test() -> None:
        async with stand(drain=600.0) as at:
            (a,) = at.replicas
            a.held.clear()
            asking = asyncio.ensure_future(at.post(stream=True).__aenter__())
            await until(lambda: bool(a.requests), "the request arrives")
            draining = asyncio.ensure_future(at.router.drain(is_interactive=True))
            await until(lambda: "/health says 503" in caplog.text, "it is logged")
            a.held.set()
            assert await (await asking).read() == EVENT * 4 + DONE
            await draining
        caplog.clear()
        async with stand(drain=600.0) as at:
            await at.router.drain(is_interactive=True)

    run(test())
    assert [text for text in caplog.messages if text.startswith("stopping")] == ["stopping"]


def test_request_that_outlasts_drain_is_cut_off(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")

    async def test() -> None:
        async with stand(drain_timeout=0.1) as at:
            (a,) = at.replicas
            a.chunk_delay_s = 60.0
            async with at.post(stream=True) as answer:
                await answer.content.readany()
                await at.router.drain()
                await at.router.close()
                with pytest.raises(aiohttp.ClientPayloadError):
                    await answer.read()
            await until(lambda: a.cancelled == 1, "the replica is cancelled")

    run(test())
    said = ["stopping", "waiting for 1 requests to end, for 0.1 s", "1 requests were cut off"]
    assert [text for text in caplog.messages if "replica" not in text] == said


def test_idle_connections_do_not_delay_drain() -> None:
    async def test() -> None:
        async with stand(drain_timeout=60.0) as at:
            async with at.post():
                pass
            async with asyncio.timeout(5):
                await at.router.drain()

    run(test())


def test_listeners_are_told_of_joining_and_leaving_replicas() -> None:
    class Heard(FleetListener):
        def added(self, member: FleetMember) -> None:
            said.append(f"+{member.replica.name}")

        def removed(self, member: FleetMember) -> None:
            said.append(f"-{member.replica.name}")

    said: list[str] = []

    async def test() -> None:
        async with replicas() as (a,):
            fixed = StaticDiscovery([parse_replica(f"{a.url},name=a", "test")])
            router = Router(RouteOptions(**FAST), wiring(discovery=fixed, listeners=[Heard()]))
            await router.start()
            router.fleet.update([])
            await router.close()

    run(test())
    assert said == ["+a", "-a"]


def test_tls_to_clients_and_replicas(tmp_path: Path) -> None:
    async def test() -> None:
        chain, key = certificate(tmp_path)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(chain, key)

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            return web.json_response({"data": [{"id": "m"}]})

        runner = web.ServerRunner(web.Server(handle), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        replica = parse_replica(f"https://127.0.0.1:{runner.addresses[0][1]},name=a", "test")
        settings = {"tls_certificate": chain, "tls_key": key}
        trusting = ssl.create_default_context(cafile=chain)
        for replica_ca, status in ((chain, 200), (None, 503)):
            discovery = StaticDiscovery([replica])
            async with (
                router_over([], discovery=discovery, replica_ca=replica_ca, **settings) as router,
                aiohttp.ClientSession() as client,
            ):
                url = f"https://127.0.0.1:{router.port}/v1/completions"
                async with client.post(url, json={"model": "m"}, ssl=trusting) as answer:
                    assert answer.status == status
                with pytest.raises(aiohttp.ClientError):
                    await client.get(url)
        await runner.cleanup()

    run(test())


def test_unreadable_tls_file_is_refused_with_its_flag(tmp_path: Path) -> None:
    chain, key = certificate(tmp_path)
    for flag, options in (
        ("--tls-key", {"tls_certificate": chain, "tls_key": "/nowhere"}),
        ("--tls-certificate", {"tls_certificate": "/nowhere", "tls_key": key}),
        ("--replica-ca", {"replica_ca": "/nowhere"}),
    ):
        with pytest.raises(InvalidSettings, match=f"{flag}: /nowhere cannot be read: No such"):
            Router(RouteOptions(**options), wiring())


def test_unknown_model_names_are_not_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(prompts, "_LOGGED_MAX", 3)

    async def test() -> None:
        async with stand(prompts=PromptBuilder()) as at:
            for name in ("a", "b", "c", "evil\r\n", "x" * 100_000):
                async with at.post(model=name) as answer:
                    assert answer.status == 404
                    assert len(await answer.read()) < 1000
            async with at.post() as answer:
                assert answer.status == 200

    run(test())
    (said,) = caplog.messages
    assert said.startswith("prompts of m are compared by characters")
