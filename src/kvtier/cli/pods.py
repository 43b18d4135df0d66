"""Flags for what Kubernetes knows, the same for every command that follows it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Final, TypeVar

import click

from kvtier.errors import InvalidSettings
from kvtier.router.fleet.objectives import Objectives
from kvtier.router.fleet.replicas import ReplicaDiscovery

_Command = TypeVar("_Command", bound=Callable[..., Any])

_PORT_MAX: Final = 65535
_GROUP: Final = "inference.networking.k8s.io"
_OPTIONS: Final = (
    click.option("--pool-name", help="InferencePool whose pods are the replicas (Kubernetes)."),
    click.option(
        "--pool-namespace",
        envvar="NAMESPACE",
        default="default",
        help="Its namespace, also of --selector.  [$NAMESPACE, or default]",
    ),
    click.option("--pool-group", default=_GROUP, help=f"Its API group.  [{_GROUP}]"),
    click.option("--selector", help="Instead of a pool: pods of these labels, as app=vllm,tier=a."),
    click.option(
        "--target-port",
        default="8000",
        metavar="PORT[,PORT...]",
        help="Of pods by --selector, each an endpoint.  [8000]",
    ),
)


def pod_flags(command: _Command) -> _Command:
    """Add them; the command hands what it gets to `pods`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def pods(flags: Mapping[str, Any], besides: Sequence[object] = ()) -> ReplicaDiscovery | None:
    """The pods that flags ask for; None where they ask for none.

    `besides`: whatever else names replicas; there must be nothing. Raises InvalidSettings.
    """
    if not flags["pool_name"] and not flags["selector"]:
        return None
    if any(besides):
        raise InvalidSettings("--pool-name and --selector: replicas come from Kubernetes alone")
    try:
        from kvtier.router.fleet.kubernetes import pods as cluster
    except ModuleNotFoundError as error:
        raise InvalidSettings(
            f"--pool-name and --selector need {error.name}: pip install 'kvtier[kubernetes]'"
        ) from error
    selected = None
    if flags["selector"]:
        labels = cluster.parse_labels(flags["selector"], "--selector")
        selected = cluster.Selected(labels, _ports(flags["target_port"]))
    return cluster.PodDiscovery(
        flags["pool_namespace"],
        pool=flags["pool_name"],
        group=flags["pool_group"],
        selected=selected,
    )


def _ports(text: str) -> list[int]:
    """Each once. Raises InvalidSettings."""
    ports = []
    for part in text.split(","):
        if not part.strip().isdecimal() or not 1 <= int(part) <= _PORT_MAX:
            raise InvalidSettings(f"--target-port: {part!r} is no port; write 8000 or 8000,8001")
        ports.append(int(part))
    return list(dict.fromkeys(ports))


def objectives(
    flags: Mapping[str, Any], known: Objectives
) -> AbstractAsyncContextManager[object, None]:
    """While it is open, `known` is told the priorities of the pool's objectives, if there is one.

    Raises InvalidSettings. Call it after `pods`, which has looked at the same flags.
    """
    if not flags["pool_name"]:
        return nullcontext()
    from kvtier.router.fleet.kubernetes.objectives import PoolObjectives

    return PoolObjectives(
        flags["pool_namespace"], flags["pool_name"], known, group=flags["pool_group"]
    )
