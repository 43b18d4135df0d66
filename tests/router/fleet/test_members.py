import asyncio

import pytest

from kvtier.errors import InvalidSettings
from kvtier.router.fleet.members import (
    UNHEALTHY_AFTER,
    Fleet,
    FleetListener,
    FleetMember,
    ModelCard,
    ReplicaHealth,
)
from kvtier.router.fleet.replicas import FileDiscovery, Replica, StaticDiscovery
from kvtier.transfer.breaker import FAILURES, PAUSE_S

CARDS = (ModelCard("m", b'{"id":"m"}'),)


def replica(name: str, port: int = 1, **fields: object) -> Replica:
    return Replica(name=name, url=f"http://{name}:{port}", **fields)  # type: ignore[arg-type]


def fleet_of(*replicas: Replica) -> Fleet:
    fleet = Fleet()
    fleet.update(replicas)
    for member in fleet.members:
        fleet.mark_healthy(member, CARDS, 0.0)
    return fleet


def names(fleet: Fleet, model: str = "m") -> list[str]:
    return [endpoint.name for endpoint in fleet.candidates(model)]


class Heard(FleetListener):
    def __init__(self) -> None:
        self.said: list[str] = []

    def added(self, member: FleetMember) -> None:
        self.said.append(f"+{member.replica.name}")

    def updated(self, member: FleetMember) -> None:
        self.said.append(f"{member.replica.name} {dict(member.endpoint.labels)}")

    def removed(self, member: FleetMember) -> None:
        self.said.append(f"-{member.replica.name}")


def test_member_is_available_after_first_passed_health_check() -> None:
    fleet = Fleet()
    fleet.update([replica("a"), replica("b")])
    a, _ = fleet.members
    assert (names(fleet), a.health) == ([], ReplicaHealth.UNKNOWN)
    fleet.mark_healthy(a, CARDS, 0.0)
    assert (names(fleet), a.reason) == (["a"], "")
    assert fleet.models() == {"m"}
    assert [endpoint.name for endpoint in fleet.available()] == ["a"]
    assert fleet.is_available(a.endpoint)


def test_healthy_member_survives_one_failed_check() -> None:
    fleet = fleet_of(replica("a"))
    (a,) = fleet.members
    for _ in range(UNHEALTHY_AFTER - 1):
        fleet.mark_unhealthy(a, "no answer")
    assert names(fleet) == ["a"]
    fleet.mark_unhealthy(a, "no answer")
    assert (names(fleet), a.reason) == ([], "no answer")
    assert fleet.models() == {"m"}, "the models of an unavailable member stay known"
    fleet.mark_healthy(a, CARDS, 0.0)
    assert names(fleet) == ["a"]
    fleet.update([replica("a"), replica("b")])
    fleet.mark_unhealthy(fleet.members[1], "refused")
    assert fleet.members[1].health is ReplicaHealth.UNHEALTHY


def test_models_of_member_are_listed_or_configured() -> None:
    fleet = fleet_of(replica("a"), replica("b", models=frozenset(("n",))))
    assert (names(fleet), names(fleet, "n")) == (["a"], ["b"])
    a, _ = fleet.members
    fleet.mark_healthy(a, (*CARDS, ModelCard("lora", b"{}")), 1.0)
    assert names(fleet, "lora") == ["a"]
    fleet.mark_healthy(a, CARDS, 2.0)
    assert names(fleet, "lora") == []


def test_breaker_opens_on_undelivered_requests_until_check_after_pause() -> None:
    fleet = fleet_of(replica("a"))
    (a,) = fleet.members
    for _ in range(FAILURES - 1):
        fleet.mark_undelivered(a, 10.0)
    fleet.mark_delivered(a)
    for _ in range(FAILURES - 1):
        fleet.mark_undelivered(a, 10.0)
    assert names(fleet) == ["a"]
    fleet.mark_undelivered(a, 10.0)
    assert (names(fleet), a.reason) == ([], "requests could not be delivered to it")
    fleet.mark_healthy(a, CARDS, 10.0 + PAUSE_S / 2)
    assert names(fleet) == []
    fleet.mark_healthy(a, CARDS, 10.0 + PAUSE_S)
    assert names(fleet) == ["a"]


def test_draining_member_is_removed_after_its_last_request() -> None:
    fleet = fleet_of(replica("a"), replica("b"))
    heard = Heard()
    fleet.add_listener(heard)
    a, _ = fleet.members
    stay = fleet.add_load(a.endpoint, 100, 40)
    fleet.update([replica("b")])
    assert (names(fleet), list(fleet.draining), heard.said) == (["b"], [a], [])
    assert fleet.member(a.endpoint) is a
    assert not fleet.is_available(a.endpoint)
    stay.end()
    assert not fleet.is_available(a.endpoint)
    assert (list(fleet.draining), heard.said) == ([], ["-a"])
    with pytest.raises(KeyError):
        fleet.member(a.endpoint)


def test_member_is_replaced_on_new_address_and_updated_on_new_labels() -> None:
    fleet = fleet_of(replica("a"), replica("b"))
    heard = Heard()
    fleet.add_listener(heard)
    a, b = fleet.members
    fleet.update([replica("b", labels={"zone": "eu"}, models=frozenset(("n",))), replica("a", 2)])
    assert heard.said == ["-a", "b {'zone': 'eu'}", "+a"]
    assert [member.replica.name for member in fleet.members] == ["b", "a"]
    assert fleet.members[0] is b
    assert (b.endpoint.labels, names(fleet, "n")) == ({"zone": "eu"}, ["b"])
    assert fleet.members[1] is not a
    heard.said.clear()
    fleet.update([member.replica for member in fleet.members])
    assert heard.said == [], "an unchanged set has no effect"


def test_draining_member_is_logged_with_its_requests_in_flight(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    fleet = fleet_of(replica("a"), replica("b"))
    a, _ = fleet.members
    stays = [fleet.add_load(a.endpoint, 1, 1) for _ in range(2)]
    fleet.update([])
    for stay in stays:
        stay.end()
    assert [record.message for record in caplog.records] == [
        "replica a is no longer listed; it finishes 2 requests",
        "replica b is no longer listed",
    ]


def test_request_load_is_counted_until_end() -> None:
    fleet = fleet_of(replica("a"))
    endpoint = fleet.members[0].endpoint
    first, second = fleet.add_load(endpoint, 100, 40), fleet.add_load(endpoint, 10, 10)
    load = (endpoint.in_flight, endpoint.in_flight_tokens, endpoint.pending_tokens)
    assert load == (2, 110, 50)
    first.answered()
    first.answered()
    assert endpoint.pending_tokens == 10
    first.end()
    second.end()
    load = (endpoint.in_flight, endpoint.in_flight_tokens, endpoint.pending_tokens)
    assert load == (0, 0, 0)


def test_on_change_is_called_when_candidates_change() -> None:
    fleet = fleet_of(replica("a"))
    woken: list[int] = []
    fleet.on_change(lambda: woken.append(1))
    (a,) = fleet.members
    fleet.mark_healthy(a, CARDS, 1.0)
    assert not woken, "an unchanged set has no effect"
    for _ in range(UNHEALTHY_AFTER):
        fleet.mark_unhealthy(a, "gone")
    fleet.mark_healthy(a, CARDS, 1.0)
    assert len(woken) == 2


def test_fleet_follows_discovery() -> None:
    async def followed() -> None:
        fleet = Fleet()
        ready = asyncio.Event()
        await fleet.follow(StaticDiscovery([replica("a")]), ready)
        assert ready.is_set()
        assert [member.replica.name for member in fleet.members] == ["a"]
        with pytest.raises(InvalidSettings):
            await fleet.follow(FileDiscovery("/nowhere/replicas.yaml"), asyncio.Event())

    asyncio.run(followed())
