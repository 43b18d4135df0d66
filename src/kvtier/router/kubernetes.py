"""Endpoints in Kubernetes: ready pods by label, or those of an InferencePool.

The official client brings configuration, credentials and transport; its calls block, so each
list-and-watch runs on a thread of its own and hands what it saw to the event loop. Labels are
compared here as well as by the API server.
Invariants: an API server that is away changes nothing, the last set stays; a watch that falls
silent is begun anew within `window_s`; after `watch` is closed no thread is left.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import kubernetes
import msgspec
import urllib3

from kvtier.errors import InvalidSettings
from kvtier.router.replicas import Replica

_log = logging.getLogger(__name__)

GROUPS: Final = {
    "inference.networking.k8s.io": "v1",
    "inference.networking.x-k8s.io": "v1alpha2",
}
"""Of InferencePool: the stable one, and the one before it."""
_PLURAL: Final = "inferencepools"
_CONNECT_S: Final = 5.0
_PAUSES_S: Final = (0.5, 1.0, 2.0, 5.0, 15.0)
_STOP_S: Final = 10.0
_GONE: Final = 410

Object = Mapping[str, Any]
_Call = Callable[..., Any]


class Selected(msgspec.Struct, frozen=True):
    """Which pods are endpoints, and at which ports."""

    labels: Mapping[str, str]
    ports: Sequence[int]


class _Watch:
    """One kind of object, listed and then watched on a thread."""

    def __init__(
        self, what: str, call: _Call, seen: Callable[[Sequence[Object]], None], window_s: float
    ) -> None:
        """`call(selector, **options)` asks the API; `seen` gets all objects at each change."""
        self._what = what
        self._call = call
        self._seen = seen
        self._window_s = window_s
        self._selector = ""
        self._objects: dict[str, Object] = {}
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._response: Any = None
        self._thread = threading.Thread(target=self._run, name=f"watch-{what}", daemon=True)

    def start(self, selector: str) -> None:
        """Begin, or begin anew with another selector."""
        self._selector = selector
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._interrupt()

    def stop(self) -> None:
        """Blocks until the thread has ended."""
        self._stopped.set()
        self._interrupt()
        if self._thread.ident is not None:
            self._thread.join(_STOP_S)

    def _interrupt(self) -> None:
        with self._lock:
            if self._response is not None:
                self._response.shutdown()

    def _run(self) -> None:
        failures = 0
        while not self._stopped.is_set():
            try:
                self._round()
                failures = 0
                continue
            except kubernetes.client.ApiException as error:
                reason = f"{error.status} {error.reason}"
            except (urllib3.exceptions.ReadTimeoutError, urllib3.exceptions.ProtocolError):
                continue  # silence, or a watch that was ended: look again
            except (urllib3.exceptions.HTTPError, OSError, ValueError, TypeError) as error:
                reason = str(error)
            if failures == 0:
                _log.warning("%s cannot be watched: %s; what was known stays", self._what, reason)
            self._stopped.wait(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)])
            failures += 1

    def _round(self) -> None:
        """One list and the watch after it. Raises what the client raises."""
        selector = self._selector
        listed = msgspec.json.decode(self._ask(selector).data)
        self._objects = {_key(item): item for item in listed["items"]}
        self._tell(selector)
        version = listed.get("metadata", {}).get("resourceVersion")
        response = self._ask(
            selector,
            watch=True,
            resource_version=version,
            timeout_seconds=max(1, int(self._window_s)),
            allow_watch_bookmarks=True,
        )
        with self._lock:
            self._response = response
        try:
            if selector != self._selector or self._stopped.is_set():
                return
            for event in _events(response):
                self._apply(event, selector)
        finally:
            with self._lock:
                self._response = None
            response.close()

    def _ask(self, selector: str, **options: Any) -> Any:
        timeouts = (_CONNECT_S, self._window_s)
        return self._call(selector, **options, _preload_content=False, _request_timeout=timeouts)

    def _apply(self, event: Object, selector: str) -> None:
        kind, item = event["type"], event["object"]
        if kind in ("ADDED", "MODIFIED"):
            self._objects[_key(item)] = item
        elif kind == "DELETED":
            self._objects.pop(_key(item), None)
        elif kind == "ERROR":
            raise kubernetes.client.ApiException(
                status=item.get("code", _GONE), reason=item.get("reason", "the watch broke off")
            )
        else:
            return
        self._tell(selector)

    def _tell(self, selector: str) -> None:
        if selector == self._selector and not self._stopped.is_set():
            self._seen(list(self._objects.values()))


class Pods:
    """Meets Discovery: the ready pods that a pool, or a selector, names."""

    def __init__(
        self,
        namespace: str,
        *,
        pool: str | None = None,
        group: str = "inference.networking.k8s.io",
        selected: Selected | None = None,
        api: Any = None,
        window_s: float = 30.0,
    ) -> None:
        """Give `pool` or `selected`. `api`: an ApiClient; None: of the cluster or kubeconfig.

        Raises InvalidSettings where there is no configuration to be found.
        """
        if (pool is None) == (selected is None):
            raise InvalidSettings("give a pool or a selector, one of them")
        if group not in GROUPS:
            raise InvalidSettings(
                f"--pool-group: {group!r} is not known; use {' or '.join(GROUPS)}"
            )
        self._namespace = namespace
        self._pool = pool
        self._group = group
        self._selected = selected
        self._api = api or _client()
        self._window_s = window_s
        self._pods: Sequence[Object] | None = None
        self._changed = asyncio.Event()

    async def watch(self) -> AsyncIterator[Sequence[Replica]]:
        """The first set once pods have been listed; waits for a pool that is not there yet."""
        loop = asyncio.get_running_loop()
        pods = _Watch("pods", self._list_pods, _into(loop, self._saw_pods), self._window_s)
        watches = [pods]
        if self._pool is not None:
            saw = _into(loop, lambda found: self._saw_pool(found, pods))
            watches.append(_Watch("the pool", self._list_pools, saw, self._window_s))
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
            await asyncio.gather(*(asyncio.to_thread(one.stop) for one in watches))

    def _replicas(self) -> Sequence[Replica] | None:
        if self._pods is None or self._selected is None:
            return None
        found = [replica for pod in self._pods for replica in replicas_of(pod, self._selected)]
        return sorted(found, key=lambda replica: replica.name)

    def _saw_pods(self, found: Sequence[Object]) -> None:
        self._pods = found
        self._changed.set()

    def _saw_pool(self, found: Sequence[Object], pods: _Watch) -> None:
        mine = [item for item in found if item["metadata"]["name"] == self._pool]
        if not mine:
            _log.warning("there is no InferencePool %s in %s", self._pool, self._namespace)
            return
        selected = selected_of(mine[0])
        if selected is None:
            _log.warning("InferencePool %s has no labels or no ports", self._pool)
        elif selected != self._selected:
            before, self._selected = self._selected, selected
            if before is None or before.labels != selected.labels:
                self._pods = None
                pods.start(_text(selected.labels))
            self._changed.set()

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
    """What a pool selects, in either version; None where it is not complete."""
    spec = pool.get("spec", {})
    selector = spec.get("selector", {})
    labels = selector.get("matchLabels", selector)
    ports = [port["number"] for port in spec.get("targetPorts", ())]
    if not ports and "targetPortNumber" in spec:
        ports = [spec["targetPortNumber"]]
    return Selected(dict(labels), ports) if labels and ports else None


def replicas_of(pod: Object, selected: Selected) -> list[Replica]:
    """One for each port of a pod that is ready and selected."""
    metadata, status = pod.get("metadata", {}), pod.get("status", {})
    labels = metadata.get("labels") or {}
    address = status.get("podIP")
    if metadata.get("deletionTimestamp") or not address or not _is_ready(status):
        return []
    if any(labels.get(name) != value for name, value in selected.labels.items()):
        return []
    host = f"[{address}]" if ":" in address else address
    name = f"{metadata.get('namespace', 'default')}/{metadata['name']}"
    return [
        Replica(
            name=name if len(selected.ports) == 1 else f"{name}:{port}",
            url=f"http://{host}:{port}",
            labels=dict(labels),
        )
        for port in selected.ports
    ]


def parse_labels(text: str, where: str) -> dict[str, str]:
    """`app=vllm,tier=a`. Raises InvalidSettings."""
    found = {}
    for part in text.split(","):
        name, separator, value = part.strip().partition("=")
        if not separator or not name:
            raise InvalidSettings(f"{where}: {part!r} is no label; write app=vllm,tier=a")
        found[name] = value
    return found


def _is_ready(status: Object) -> bool:
    conditions = status.get("conditions") or ()
    return any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)


def _text(labels: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in sorted(labels.items()))


def _key(item: Object) -> str:
    name: str = item["metadata"]["name"]
    return name


def _events(response: Any) -> Iterator[Object]:
    """One JSON a line."""
    held = b""
    for chunk in response.stream(decode_content=True):
        *lines, held = (held + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield msgspec.json.decode(line)


def _into(
    loop: asyncio.AbstractEventLoop, seen: Callable[[Sequence[Object]], None]
) -> Callable[[Sequence[Object]], None]:
    """`seen`, on the event loop; nothing once it is closed."""

    def hand_over(found: Sequence[Object]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(seen, found)

    return hand_over


def _client() -> Any:
    configuration = kubernetes.client.Configuration()
    try:
        kubernetes.config.load_incluster_config(client_configuration=configuration)
    except kubernetes.config.ConfigException:
        try:
            kubernetes.config.load_kube_config(client_configuration=configuration)
        except (kubernetes.config.ConfigException, OSError) as error:
            raise InvalidSettings(f"no Kubernetes to be found: {error}") from error
    return kubernetes.client.ApiClient(configuration)
