"""Priorities from Kubernetes: the InferenceObjectives of a pool.

InferenceObjective exists in two API groups, and a cluster may serve either, both or none.
Invariants: objectives of other pools are ignored; a group that the cluster does not serve, or that
the router may not read, is not an error; while the API server is unreachable, the priorities stay;
after `__aexit__` no thread is left.
"""

import asyncio
import logging
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final

import kubernetes
import msgspec

from kvtier.router.fleet.kubernetes import watching
from kvtier.router.fleet.kubernetes.pods import GROUP
from kvtier.router.fleet.kubernetes.watching import Call, Object, Watch
from kvtier.router.fleet.objectives import Objectives

_log = logging.getLogger(__name__)

GROUPS: Final = {"llm-d.ai": "v1alpha2", "inference.networking.x-k8s.io": "v1alpha2"}
"""API groups and versions of InferenceObjective. If both define an objective, the first wins."""
_PLURAL: Final = "inferenceobjectives"


class _PoolRef(msgspec.Struct):
    name: str
    group: str = GROUP
    kind: str = "InferencePool"


class _Spec(msgspec.Struct, rename="camel"):
    pool_ref: _PoolRef
    priority: int | None = None


class _ObjectiveMetadata(msgspec.Struct, rename="camel"):
    name: str
    deletion_timestamp: str | None = None


class _Objective(msgspec.Struct):
    metadata: _ObjectiveMetadata
    spec: _Spec


class PoolObjectives:
    """An async context that keeps `objectives` up to date with the objects of a pool."""

    def __init__(
        self,
        namespace: str,
        pool: str,
        objectives: Objectives,
        *,
        group: str = GROUP,
        api: Any = None,
        window_s: float = watching.WINDOW_S,
        absent_s: float = watching.ABSENT_S,
    ) -> None:
        """`group` is the API group of the pool. `api` is an ApiClient.

        Without `api`, one is made from the in-cluster configuration or the kubeconfig. Raises
        InvalidSettings if neither exists.
        """
        self._namespace = namespace
        self._pool = _PoolRef(pool, group)
        self._objectives = objectives
        self._api = api or watching.client()
        self._window_s = window_s
        self._absent_s = absent_s
        self._watches: list[Watch] = []

    async def __aenter__(self) -> "PoolObjectives":
        """Start the watches without waiting: until the cluster answers, only the flags apply."""
        for group in GROUPS:
            self._objectives.update(group, {})
            watch = self._watch(group)
            self._watches.append(watch)
            watch.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await watching.stop(self._watches)

    def _watch(self, group: str) -> Watch:
        def seen(_: str, found: Sequence[Object]) -> None:
            priorities = priorities_of(found, self._pool)
            if self._objectives.update(group, priorities):
                texts = [f"{name}={number}" for name, number in sorted(priorities.items())]
                _log.info("objectives of %s: %s", group, ", ".join(texts) or "none")

        return Watch(
            f"{_PLURAL}.{group}",
            self._list(group),
            watching.into(asyncio.get_running_loop(), seen),
            self._window_s,
            absent_s=self._absent_s,
            forbidden_s=self._absent_s,
        )

    def _list(self, group: str) -> Call:
        def call(_: str, **options: Any) -> Any:
            custom = kubernetes.client.CustomObjectsApi(self._api)
            return custom.list_namespaced_custom_object(
                group, GROUPS[group], self._namespace, _PLURAL, **options
            )

        return call


def priorities_of(found: Sequence[Object], pool: _PoolRef) -> dict[str, int]:
    """Return the priority of each objective that refers to `pool`; 0 if it states none."""
    priorities = {}
    for item in found:
        try:
            read = msgspec.convert(item, _Objective)
        except msgspec.ValidationError:
            continue
        if read.spec.pool_ref == pool and not read.metadata.deletion_timestamp:
            priorities[read.metadata.name] = read.spec.priority or 0
    return priorities
