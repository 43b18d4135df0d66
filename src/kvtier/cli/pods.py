"""Flags that find replicas through Kubernetes, shared by the commands that do."""

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
        help="Namespace of the pool, or of --selector.  [$NAMESPACE, or default]",
    ),
    click.option("--pool-group", default=_GROUP, help=f"API group of the pool.  [{_GROUP}]"),
    click.option(
        "--selector", help="Labels of the replicas' pods, as app=vllm,tier=a; instead of a pool."
    ),
    click.option(
        "--target-port",
        default="8000",
        metavar="PORT[,PORT...]",
        help="Ports of the pods that --selector finds; each is a replica.  [8000]",
    ),
)


def pod_flags(command: _Command) -> _Command:
    """Add the flags to a command, which passes their values to `pods`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def pods(flags: Mapping[str, Any], besides: Sequence[object] = ()) -> ReplicaDiscovery | None:
    """Return the discovery that the flags ask for, or None if they name no pods.

    `besides` are the values of other flags that name replicas, which exclude pods. Raises
    InvalidSettings.
    """
    if not flags["pool_name"] and not flags["selector"]:
        return None
    if any(besides):
        raise InvalidSettings(
            "--pool-name and --selector: all replicas come from Kubernetes; give no others"
        )
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
    """Parse a list of ports, without repetitions. Raises InvalidSettings."""
    ports = []
    for part in text.split(","):
        if not part.strip().isdecimal() or not 1 <= int(part) <= _PORT_MAX:
            raise InvalidSettings(f"--target-port: {part!r} is not a port; write 8000 or 8000,8001")
        ports.append(int(part))
    return list(dict.fromkeys(ports))


def objectives(
    flags: Mapping[str, Any], known: Objectives
) -> AbstractAsyncContextManager[object, None]:
    """Return a context that keeps the priorities of the pool's objectives in `known`.

    Without a pool it does nothing. Raises InvalidSettings. Call `pods` first, which checks the same
    flags.
    """
    if not flags["pool_name"]:
        return nullcontext()
    from kvtier.router.fleet.kubernetes.objectives import PoolObjectives

    return PoolObjectives(
        flags["pool_namespace"], flags["pool_name"], known, group=flags["pool_group"]
    )
