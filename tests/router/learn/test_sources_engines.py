import aiohttp
import pytest

from kvtier.errors import Unavailable
from kvtier.router.fleet.members import Fleet, FleetMember, ModelCard
from kvtier.router.fleet.replicas import Replica
from kvtier.router.learn.sources import EVENTS, EngineSource, EngineSources
from tests.router.route.routers import run


def member(fleet: Fleet, name: str) -> FleetMember:
    return next(member for member in fleet.members if member.replica.name == name)


def test_engine_with_events_tokenizes_while_available() -> None:
    async def test() -> None:
        fleet = Fleet()
        labels = {EVENTS: "5557"}
        fleet.update(
            [
                Replica(name="silent", url="http://silent:1"),
                Replica(name="away", url="http://away:1", labels=labels),
                Replica(name="there", url="http://there:1", labels=labels),
            ]
        )
        async with aiohttp.ClientSession() as session:
            engines = EngineSources(lambda: fleet.members)
            engines.use(session)
            with pytest.raises(KeyError):
                engines["m"]
            for name in ("silent", "there"):
                fleet.mark_healthy(
                    member(fleet, name), [ModelCard("m", b"{}"), ModelCard("sql", b"{}")], 0.0
                )
            assert isinstance(engines["m"], EngineSource)
            assert engines["m"] is engines["sql"]
            assert set(engines) == {"m", "sql"}
            assert len(engines) == 2
            was = engines["m"]
            engines.remove("http://there:1")
            engines.remove("http://there:1")
            assert engines["m"] is not was, "the cached responses are removed"

    run(test())


def test_next_engine_is_used_while_one_rests() -> None:
    async def test() -> None:
        fleet = Fleet()
        fleet.update(
            [
                Replica(name=name, url=f"http://127.0.0.1:{port}", labels={EVENTS: "5557"})
                for name, port in (("a", 1), ("b", 2))
            ]
        )
        async with aiohttp.ClientSession() as session:
            engines = EngineSources(lambda: fleet.members)
            engines.use(session)
            for one in fleet.members:
                fleet.mark_healthy(one, [ModelCard("m", b"{}")], 0.0)
            first = engines["m"]
            assert engines["m"] is first
            with pytest.raises(Unavailable):
                await first.completion("x", "m", add_special_tokens=True)
            second = engines["m"]
            assert second is not first
            with pytest.raises(Unavailable):
                await second.completion("x", "m", add_special_tokens=True)
            assert engines["m"] is first, "a resting engine is returned if there is no other"

    run(test())
