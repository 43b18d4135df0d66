import asyncio

import pytest

from kvtier.router.choose.base import Endpoint
from kvtier.router.fleet.members import Fleet, ModelCard
from kvtier.router.fleet.replicas import Replica
from kvtier.router.fleet.waiting import Waiting
from kvtier.router.request.refusals import Refusal
from tests.router.route.routers import run, stand, until


def fleet_of(**models: str) -> Fleet:
    fleet = Fleet()
    fleet.update([Replica(name=name, url=f"http://{name}:1") for name in models])
    for member in fleet.members:
        cards = [ModelCard(model, b"{}") for model in models[member.replica.name]]
        fleet.mark_healthy(member, cards, 0.0)
    return fleet


class Line:
    """Requests that wait, occupy an endpoint as soon as they get one, and release it on demand."""

    def __init__(self, fleet: Fleet, **bounds: float) -> None:
        settings = {"in_flight": 1, "bound": 10, "timeout_s": 30.0, **bounds}
        self.fleet = fleet
        self.waiting = Waiting(fleet, **settings)  # type: ignore[arg-type]
        self.served: list[tuple[str, str]] = []
        self.stays: dict[str, tuple[Endpoint, object]] = {}

    async def ask(self, who: str, model: str = "m", without: str = "") -> None:
        spared = [one.endpoint for one in self.fleet.members if one.endpoint.name in without]
        endpoint = (await self.waiting.candidates(model, frozenset(spared)))[0]
        self.served.append((who, endpoint.name))
        self.stays[who] = (endpoint, self.fleet.add_load(endpoint, 1, 1))

    def end(self, who: str) -> None:
        endpoint, stay = self.stays.pop(who)
        stay.end()  # type: ignore[attr-defined]
        self.waiting.ended(endpoint)

    async def queue(self, *who: str, model: str = "m") -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(self.ask(name, model)) for name in who]
        await asyncio.sleep(0)
        return tasks


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_requests_do_not_wait_without_limit() -> None:
    async def test() -> None:
        line = Line(fleet_of(a="m"), in_flight=0)
        for number in range(100):
            await line.ask(str(number))
        assert len(line.served) == 100

    run(test())


def test_waiting_requests_are_served_in_order_of_arrival() -> None:
    async def test() -> None:
        line = Line(fleet_of(a="m"))
        await line.ask("1")
        tasks = await line.queue("2", "3", "4")
        assert len(line.waiting) == 3
        # The new request runs before the one that is woken.
        tasks.append(asyncio.create_task(line.ask("5")))
        line.end("1")
        await settle()
        assert [who for who, _ in line.served] == ["1", "2"]
        for who in ("2", "3", "4", "5"):
            line.end(who)
            await settle()
        await asyncio.gather(*tasks)
        assert [who for who, _ in line.served] == ["1", "2", "3", "4", "5"]
        assert len(line.waiting) == 0

    run(test())


def test_free_replica_serves_first_request_that_can_use_it() -> None:
    async def test() -> None:
        line = Line(fleet_of(a="m", b="n"))
        await line.ask("m1", "m")
        await line.ask("n1", "n")
        tasks = await line.queue("m2", model="m") + await line.queue("n2", model="n")
        line.end("n1")
        await settle()
        assert line.served[-1] == ("n2", "b")
        line.end("m1")
        await asyncio.gather(*tasks)
        assert line.served[-1] == ("m2", "a")

    run(test())


def test_cancelled_request_passes_its_room_on() -> None:
    async def test() -> None:
        line = Line(fleet_of(a="m"))
        await line.ask("1")
        first, second = await line.queue("2", "3")
        line.end("1")
        first.cancel()
        await settle()
        await second
        assert [who for who, _ in line.served] == ["1", "3"]

    run(test())


def test_cancelled_request_passes_its_room_on_to_other_model() -> None:
    async def test() -> None:
        line = Line(fleet_of(a="mn"))
        await line.ask("m1")
        (first,) = await line.queue("m2")
        (second,) = await line.queue("n1", model="n")
        line.end("m1")
        first.cancel()
        await settle()
        assert second.done()
        assert [who for who, _ in line.served] == ["m1", "n1"]

    run(test())


def test_unused_room_is_passed_on() -> None:
    async def test() -> None:
        line = Line(fleet_of(a="m"))
        await line.ask("1")
        refused = asyncio.create_task(
            line.waiting.candidates("m")
        )  # as if its profile refused every endpoint
        await asyncio.sleep(0)
        (second,) = await line.queue("2")
        line.end("1")
        await settle()
        assert refused.done()
        assert second.done()

    run(test())


def test_request_that_uses_other_replica_passes_its_room_on() -> None:
    async def test() -> None:
        line = Line(fleet_of(a="m", b="mn"))
        await line.ask("1")
        await line.ask("2")
        (first,) = await line.queue("3")
        (second,) = await line.queue("4", model="n")
        # `b` wakes the first request, which then finds room on `a` as well.
        line.end("2")
        line.end("1")
        await settle()
        assert first.done()
        assert second.done()
        assert [name for _, name in line.served] == ["a", "b", "a", "b"]

    run(test())


def test_new_request_for_other_model_does_not_overtake() -> None:
    async def test() -> None:
        line = Line(fleet_of(a="mn"))
        await line.ask("n1", "n")
        tasks = await line.queue("m1")
        line.end("n1")
        tasks.append(asyncio.create_task(line.ask("n2", "n")))
        await settle()
        line.end("m1")
        await asyncio.gather(*tasks)
        assert [who for who, _ in line.served] == ["n1", "m1", "n2"]

    run(test())


def test_request_excluding_replica_waits_for_others_without_blocking() -> None:
    async def test() -> None:
        line = Line(fleet_of(a="m", b="m"))
        await line.ask("1")
        await line.ask("2")
        again = asyncio.create_task(line.ask("3", without="a"))
        await asyncio.sleep(0)
        line.end("1")
        await settle()
        assert not again.done()
        await line.ask("4")
        line.end("2")
        await again
        assert [name for _, name in line.served] == ["a", "b", "a", "b"]
        with pytest.raises(Refusal) as caught:
            await line.ask("5", without="ab")
        assert caught.value.status == 503, "no replica is left to wait for"

    run(test())


def test_replica_over_limit_has_no_room_after_one_request_ends() -> None:
    async def test() -> None:
        line = Line(fleet_of(a="m"))
        await line.ask("1")
        endpoint = line.fleet.members[0].endpoint
        lookup = line.fleet.add_load(endpoint, 0, 0)
        (waits,) = await line.queue("2")
        line.end("1")
        await settle()
        assert not waits.done()
        lookup.end()
        line.waiting.ended(endpoint)
        await waits

    run(test())


def test_new_replica_wakes_waiting_requests() -> None:
    async def test() -> None:
        line = Line(fleet_of(a="m"))
        await line.ask("1")
        tasks = await line.queue("2", "3")
        line.fleet.update(
            [member.replica for member in line.fleet.members]
            + [Replica(name="b", url="http://b:1", models=frozenset("m"))]
        )
        line.fleet.mark_healthy(line.fleet.members[1], (), 0.0)
        await settle()
        assert line.served[-1] == ("2", "b")
        assert len(line.served) == 2, "one request is woken by the free slot"
        line.end("1")
        await asyncio.gather(*tasks)

    run(test())


def test_queue_is_bounded_in_length_and_time() -> None:
    async def test() -> None:
        line = Line(fleet_of(a="m"), bound=1, timeout_s=0.05)
        await line.ask("1")
        (waits,) = await line.queue("2")
        with pytest.raises(Refusal, match="1 requests wait") as caught:
            await line.ask("3")
        assert caught.value.status == 429
        assert caught.value.headers["Retry-After"]
        with pytest.raises(Refusal, match=r"busy for 0\.05 s") as caught:
            await waits
        assert caught.value.status == 429
        assert len(line.waiting) == 0

    run(test())


def test_waiting_ends_when_no_replica_is_left() -> None:
    async def test() -> None:
        line = Line(fleet_of(a="m"))
        await line.ask("1")
        (waits,) = await line.queue("2")
        for _ in range(3):
            line.fleet.mark_unhealthy(line.fleet.members[0], "it burns")
        with pytest.raises(Refusal, match="a: it burns") as caught:
            await waits
        assert caught.value.status == 503

    run(test())


def test_refusal_distinguishes_unknown_model_from_unavailable_replicas() -> None:
    async def test() -> None:
        fleet = Fleet()
        waiting = Waiting(fleet, 0, 1, 1.0)

        async def refused(model: str) -> Refusal:
            with pytest.raises(Refusal) as caught:
                await waiting.candidates(model)
            return caught.value

        assert "no replica is configured" in str(await refused("m"))
        fleet.update([Replica(name="a", url="http://a:1")])
        unknown = await refused("m")
        assert (unknown.status, "no health check" in str(unknown)) == (503, True)
        fleet.mark_healthy(fleet.members[0], [ModelCard("m", b"{}")], 0.0)
        assert (await refused("n")).status == 404

    run(test())


def test_requests_over_limit_wait_for_their_turn() -> None:
    async def test() -> None:
        async with stand(in_flight=2, queue=3) as at:
            (a,) = at.replicas
            a.held.clear()
            asking = [asyncio.ensure_future(at.post().__aenter__()) for _ in range(5)]
            await until(lambda: len(a.requests) == 2, "two requests arriving")

            async def queued() -> float:
                return await at.metric("kvtier_route_queued_requests")

            while await queued() < 3:
                await asyncio.sleep(0.01)
            async with at.post() as answer:
                assert answer.status == 429
                assert answer.headers["Retry-After"] == "1"
            assert len(a.requests) == 2
            a.held.set()
            answers = await asyncio.gather(*asking)
            assert [answer.status for answer in answers] == [200] * 5

    run(test())
