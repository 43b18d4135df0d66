import asyncio

import click
import pytest
from click.testing import CliRunner

from kvtier.cli.pods import objectives, pod_flags, pods
from kvtier.errors import InvalidSettings
from kvtier.router.fleet.objectives import Objectives
from kvtier.router.fleet.replicas import ReplicaDiscovery

GIVEN: dict[str, object] = {
    "pool_name": None,
    "pool_namespace": "default",
    "pool_group": "inference.networking.k8s.io",
    "selector": None,
    "target_port": "8000",
}


def test_without_a_pool_or_a_selector_there_are_none() -> None:
    assert pods(GIVEN) is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"pool_name": "p", "selector": "a=b"}, "give either a pool or a selector"),
        ({"selector": "a"}, "--selector"),
        ({"pool_name": "p", "pool_group": "g"}, "--pool-group"),
        ({"selector": "a=b", "target_port": "0"}, "--target-port"),
        ({"selector": "a=b", "target_port": "65536"}, "--target-port"),
        ({"selector": "a=b", "target_port": "8000,"}, "--target-port"),
        ({"selector": "a=b", "target_port": "http"}, "--target-port"),
    ],
)
def test_what_cannot_be_followed_is_an_error(given: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidSettings, match=said):
        pods({**GIVEN, **given})


def test_replicas_come_from_one_place() -> None:
    assert pods(GIVEN, [["http://h"], None]) is None
    with pytest.raises(InvalidSettings, match="all replicas come from Kubernetes"):
        pods({**GIVEN, "selector": "a=b"}, [(), "replicas.yaml"])


def test_a_command_gets_what_pods_needs() -> None:
    seen: list[ReplicaDiscovery | None] = []

    @click.command()
    @pod_flags
    def command(**flags: object) -> None:
        assert flags == GIVEN
        seen.append(pods(flags))

    assert CliRunner().invoke(command, []).exit_code == 0
    assert seen == [None]
    assert "InferencePool" in CliRunner().invoke(command, ["--help"]).output


def test_without_a_pool_there_are_no_objectives_to_follow() -> None:
    known = Objectives({"batch": -1})

    async def follow() -> None:
        async with objectives(GIVEN, known):
            assert dict(known) == {"batch": -1}

    asyncio.run(follow())


def test_the_namespace_is_that_of_the_pod_where_no_flag_says_another() -> None:
    seen: list[object] = []

    @click.command()
    @pod_flags
    def command(**flags: object) -> None:
        seen.append(flags["pool_namespace"])

    run = CliRunner().invoke
    run(command, [], env={"NAMESPACE": "prod"})
    run(command, ["--pool-namespace", "test"], env={"NAMESPACE": "prod"})
    run(command, [], env={"NAMESPACE": ""})
    assert seen == ["prod", "test", "default"]
