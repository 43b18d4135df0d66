"""Replicas in Kubernetes: the ready pods that a label selector or an InferencePool selects.

Labels and readiness are checked here again although the API server filters by them, so that no
response can turn a pod into a replica that is not selected, not ready, terminating, or in another
namespace. Invariants: while the API server is unreachable, the last set stays; an InferencePool
that is deleted, alone or with its CRD, has no replicas; a malformed object is ignored; no address
occurs twice; after `watch` is closed no thread is left.
"""

import asyncio
import ipaddress
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any, Final, TypeVar

import kubernetes
import msgspec

from kvtier.errors import InvalidSettings
from kvtier.router.fleet.kubernetes import watching
from kvtier.router.fleet.kubernetes.watching import Object, Watch
from kvtier.router.fleet.replicas import Replica

_log = logging.getLogger(__name__)

GROUP: Final = "inference.networking.k8s.io"
GROUPS: Final = {
    GROUP: "v1",
    "inference.networking.x-k8s.io": "v1alpha2",
}
"""API groups and versions of InferencePool: the stable one and its predecessor."""
_PLURAL: Final = "inferencepools"
_ABSENT_S: Final = 5.0
"""How often to look for a kind of pool that the cluster does not serve yet. Short, because no
request can be served meanwhile."""
ACTIVE_PORTS: Final = ("llm-d.ai/active-ports", "inference.networking.k8s.io/active-ports")
"""Annotations of pods that serve only some of the pool's ports; the first one present is used."""

_T = TypeVar("_T")
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class Selected(msgspec.Struct, frozen=True):
    """Which pods are replicas, and at which ports."""

    labels: Mapping[str, str]
    ports: Sequence[int]


class _PodMetadata(msgspec.Struct, rename="camel"):
    name: str
    namespace: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    deletion_timestamp: str | None = None


class _Condition(msgspec.Struct):
    type: str
    status: str


class _Status(msgspec.Struct, rename={"pod_ip": "podIP"}):
    pod_ip: str | None = None
    conditions: list[_Condition] | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the pod's readiness probes pass."""
        return any(one.type == "Ready" and one.status == "True" for one in self.conditions or ())


class _Pod(msgspec.Struct):
    metadata: _PodMetadata
    status: _Status | None = None


class _TargetPort(msgspec.Struct):
    number: Port


class _PoolSpec(msgspec.Struct, rename="camel"):
    """The spec of an InferencePool, v1 or v1alpha2 (which has a flat selector and one port)."""

    selector: dict[str, str | dict[str, str]]
    target_ports: list[_TargetPort] | None = None
    target_port_number: Port | None = None


class _Pool(msgspec.Struct):
    spec: _PoolSpec


class PodDiscovery:
    """A ReplicaDiscovery of the ready pods that an InferencePool or a label selector selects."""

    def __init__(
        self,
        namespace: str,
        *,
        pool: str | None = None,
        group: str = GROUP,
        selected: Selected | None = None,
        api: Any = None,
        window_s: float = watching.WINDOW_S,
        absent_s: float = _ABSENT_S,
    ) -> None:
        """Exactly one of `pool` and `selected` must be given. `api` is an ApiClient.

        Without `api`, one is made from the in-cluster configuration or the kubeconfig. Raises
        InvalidSettings if neither exists.
        """
        if (pool is None) == (selected is None):
            raise InvalidSettings("give either a pool or a selector")
        if group not in GROUPS:
            raise InvalidSettings(
                f"--pool-group: {group!r} is not known; use {' or '.join(GROUPS)}"
            )
        self._namespace = namespace
        self._pool = pool
        self._group = group
        self._selected = selected
        self._api = api or watching.client()
        self._window_s = window_s
        self._absent_s = absent_s
        self._pods: Sequence[Object] | None = None
        self._is_deleted = False
        self._logged = ""
        self._changed = asyncio.Event()

    async def watch(self) -> AsyncIterator[Sequence[Replica]]:
        """Yield the first set once pods are listed; wait for a pool that does not exist yet."""
        loop = asyncio.get_running_loop()
        seen = watching.into(loop, self._on_pods)
        pods = Watch("pods", self._list_pods, seen, self._window_s)
        watches = [pods]
        if self._pool is not None:
            seen = watching.into(loop, lambda _, found: self._on_pools(found, pods))
            what = f"{_PLURAL}.{self._group}"
            watches.append(
                Watch(what, self._list_pools, seen, self._window_s, absent_s=self._absent_s)
            )
            watches[1].start(f"metadata.name={self._pool}")
        elif self._selected is not None:
            pods.start(_text(self._selected.labels))
        known: Sequence[Replica] | None = None
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                found = self._replicas()
                if found is not None and found != known:
                    known = found
                    yield found
        finally:
            await watching.stop(watches)

    def _replicas(self) -> Sequence[Replica] | None:
        if self._is_deleted:
            return []
        if self._pods is None or self._selected is None:
            return None
        found = [
            replica
            for pod in self._pods
            for replica in replicas_of(pod, self._selected, self._namespace)
        ]
        # Pods on the host network share the node's address; only one of them can own a port.
        by_url: dict[str, Replica] = {}
        for replica in sorted(found, key=lambda replica: replica.name):
            by_url.setdefault(replica.url, replica)
        return list(by_url.values())

    def _on_pods(self, selector: str, found: Sequence[Object]) -> None:
        # A list for the pool's previous labels may still be under way.
        if self._selected is not None and selector == _text(self._selected.labels):
            self._pods = found
            self._changed.set()

    def _on_pools(self, found: Sequence[Object], pods: Watch) -> None:
        pool = next((item for item in found if item["metadata"]["name"] == self._pool), None)
        if pool is None or pool["metadata"].get("deletionTimestamp"):
            self._on_pool_missing()
            return
        selected = selected_of(pool)
        if selected is None:
            self._warn_once("has no labels or no ports; its replicas are left unchanged")
            return
        self._warn_once("")
        if selected != self._selected or self._is_deleted:
            before, self._selected, self._is_deleted = self._selected, selected, False
            if before is None or before.labels != selected.labels:
                self._pods = None
                pods.start(_text(selected.labels))
            self._changed.set()

    def _on_pool_missing(self) -> None:
        if self._selected is None:
            self._warn_once("does not exist yet")
        else:
            self._warn_once("was deleted: it has no replicas")
            self._is_deleted = True
            self._changed.set()

    def _warn_once(self, what: str) -> None:
        """Log `what` unless it was the last thing logged; an empty text only clears that."""
        if what and what != self._logged:
            _log.warning("InferencePool %s in %s %s", self._pool, self._namespace, what)
        self._logged = what

    def _list_pods(self, selector: str, **options: Any) -> Any:
        core = kubernetes.client.CoreV1Api(self._api)
        return core.list_namespaced_pod(self._namespace, label_selector=selector, **options)

    def _list_pools(self, selector: str, **options: Any) -> Any:
        custom = kubernetes.client.CustomObjectsApi(self._api)
        return custom.list_namespaced_custom_object(
            self._group,
            GROUPS[self._group],
            self._namespace,
            _PLURAL,
            field_selector=selector,
            **options,
        )


def selected_of(pool: Object) -> Selected | None:
    """Return what a pool of either API version selects; None if it is incomplete."""
    read = _read(pool, _Pool)
    if read is None:
        return None
    spec = read.spec
    nested = spec.selector.get("matchLabels")
    labels = nested if isinstance(nested, dict) else spec.selector
    ports = [port.number for port in spec.target_ports or ()]
    if not ports and spec.target_port_number is not None:
        ports = [spec.target_port_number]
    texts = {name: value for name, value in labels.items() if isinstance(value, str)}
    if not texts or len(texts) < len(labels) or not ports:
        return None
    return Selected(texts, list(dict.fromkeys(ports)))


def replicas_of(pod: Object, selected: Selected, namespace: str) -> list[Replica]:
    """Return a replica for each port of `pod` if it is ready, selected, and in `namespace`."""
    read = _read(pod, _Pod)
    if read is None or read.status is None or not read.status.pod_ip:
        return []
    metadata, host = read.metadata, _host(read.status.pod_ip)
    if not host:
        return []
    if metadata.deletion_timestamp or not read.status.is_ready or metadata.namespace != namespace:
        return []
    labels = metadata.labels or {}
    if any(labels.get(name) != value for name, value in selected.labels.items()):
        return []
    name = f"{namespace}/{metadata.name}"
    return [
        Replica(
            name=name if len(selected.ports) == 1 else f"{name}:{port}",
            url=f"http://{host}:{port}",
            labels=labels,
        )
        for port in _active(metadata.annotations or {}, selected.ports)
    ]


def _host(address: str) -> str:
    """Return `address` as gateways write it in a URL; empty if it is not an IP address."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return ""
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    return "" if found.scope_id else f"[{found}]"


def parse_labels(text: str, where: str) -> dict[str, str]:
    """Parse a label selector such as `app=vllm,tier=a`. Raises InvalidSettings."""
    found = {}
    for part in text.split(","):
        name, separator, value = part.strip().replace("==", "=", 1).partition("=")
        if not separator or not name or name.endswith("!") or "(" in part or ")" in part:
            raise InvalidSettings(f"{where}: {part!r} is not a label; write app=vllm,tier=a")
        found[name.strip()] = value.strip()
    return found


def _active(annotations: Mapping[str, str], ports: Sequence[int]) -> Sequence[int]:
    """Return those of `ports` that the pod's annotation lists; all if it has no annotation."""
    listed = next((annotations[name] for name in ACTIVE_PORTS if name in annotations), None)
    if listed is None:
        return ports
    active = {text.strip() for text in listed.split(",")}
    return [port for port in ports if str(port) in active]


def _text(labels: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in sorted(labels.items()))


def _read(item: Object, shape: type[_T]) -> _T | None:
    try:
        return msgspec.convert(item, shape)
    except msgspec.ValidationError:
        return None
