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


def test_pods_without_pool_and_selector_is_none() -> None:
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
def test_pods_refuses_invalid_flags(given: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidSettings, match=said):
        pods({**GIVEN, **given})


def test_pods_excludes_other_replicas() -> None:
    assert pods(GIVEN, [["http://h"], None]) is None
    with pytest.raises(InvalidSettings, match="all replicas come from Kubernetes"):
        pods({**GIVEN, "selector": "a=b"}, [(), "replicas.yaml"])


def test_pod_flags_pass_what_pods_needs() -> None:
    seen: list[ReplicaDiscovery | None] = []

    @click.command()
    @pod_flags
    def command(**flags: object) -> None:
        assert flags == GIVEN
        seen.append(pods(flags))

    assert CliRunner().invoke(command, []).exit_code == 0
    assert seen == [None]
    assert "InferencePool" in CliRunner().invoke(command, ["--help"]).output


def test_objectives_without_pool_change_nothing() -> None:
    known = Objectives({"batch": -1})

    async def follow() -> None:
        async with objectives(GIVEN, known):
            assert dict(known) == {"batch": -1}

    asyncio.run(follow())


def test_pool_namespace_defaults_to_environment() -> None:
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
