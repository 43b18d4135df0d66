"""List-and-watch of Kubernetes objects of one kind.

The official client provides configuration, credentials and transport, but its calls block, so each
watch runs on a thread of its own. Each round starts with a new list, so whatever a watch has missed
is seen within `window_s`.

Invariants: while the API server is unreachable or its responses are malformed, the known objects
stay; the server is asked again after a pause, and the log reports the failure once and the recovery
once. Rounds that end at once are followed by a pause, like failures. After `stop` the thread has
ended.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import kubernetes
import msgspec
import urllib3

from kvtier.clock import MonotonicClock
from kvtier.errors import InvalidSettings

_log = logging.getLogger(__name__)

WINDOW_S: Final = 30.0
"""Seconds after which a watch ends and a new list begins."""
ABSENT_S: Final = 60.0
"""How often to look for a kind that the cluster does not serve."""
_CONNECT_S: Final = 3.0
_LIST_S: Final = 10.0
_STOP_S: Final = 15.0
"""Longer than the longest call that cannot be interrupted."""
_PAUSES_S: Final = (0.5, 1.0, 2.0, 5.0, 15.0)
_SHORT_S: Final = 1.0
"""A round that ends sooner than this is followed by a pause."""
_FAULT: Final = "%s cannot be watched: %s; the last known state stays"
_FORBIDDEN: Final = 403
_ABSENT: Final = 404
_GONE: Final = 410
_ENDED: Final = (urllib3.exceptions.ReadTimeoutError, urllib3.exceptions.ProtocolError)

Object = Mapping[str, Any]
Call = Callable[..., Any]
Seen = Callable[[str, Sequence[Object]], None]


class Watch:
    """A watch of one kind of object, on a thread of its own.

    `start` and `stop` belong to one thread; `seen` is called on the watch's thread.
    """

    def __init__(
        self,
        what: str,
        call: Call,
        seen: Seen,
        window_s: float,
        *,
        absent_s: float | None = None,
        forbidden_s: float | None = None,
    ) -> None:
        """`call(selector, **options)` requests the list or the watch from the API server.

        `seen(selector, objects)` receives all objects after each change. With `absent_s`, a kind
        that the cluster does not serve counts as having no objects, and is looked for again after
        that time; without, it is a failure. With `forbidden_s`, a kind that may not be read is
        requested again after that time, and the known objects stay.
        """
        self._what = what
        self._call = call
        self._seen = seen
        self._window_s = window_s
        self._absent_s = absent_s
        self._forbidden_s = forbidden_s
        self._selector = ""
        self._objects: dict[str, Object] = {}
        self._clock = MonotonicClock()
        self._stopped = threading.Event()
        self._woken = threading.Event()
        self._lock = threading.Lock()
        self._response: Any = None
        self._since_s: float | None = None
        self._failures = 0
        self._logged = ""
        self._thread = threading.Thread(target=self._run, name=f"watch-{what}", daemon=True)

    def start(self, selector: str = "") -> None:
        """Start the watch, or restart it with another selector."""
        self._selector = selector
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._interrupt()

    def stop(self) -> None:
        """Stop the watch and block until its thread has ended."""
        self._stopped.set()
        self._interrupt()
        if self._thread.ident is not None:
            self._thread.join(_STOP_S)

    def _interrupt(self) -> None:
        self._woken.set()
        with self._lock:
            if self._response is not None:
                self._response.shutdown()

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._since_s = None
            pause_s: float | None = None
            try:
                self._round()
            except kubernetes.client.ApiException as error:
                pause_s = self._refused(error)
            except Exception as error:  # the thread must survive any failure
                self._log_once(type(error).__name__, logging.WARNING, _FAULT, str(error))
            since_s, now_s = self._since_s, self._clock.now_s()
            if since_s is not None and now_s - since_s >= min(_SHORT_S, self._window_s / 2):
                self._failures = 0
                continue
            self._woken.wait(self._next_pause_s() if pause_s is None else pause_s)
            self._woken.clear()

    def _round(self) -> None:
        """List, then watch until the window ends.

        Raises what the client raises, and decoding errors for malformed responses.
        """
        selector = self._selector
        listed = msgspec.json.decode(self._request(selector, _LIST_S).data)
        self._objects = {_key(item): item for item in listed["items"]}
        self._notify(selector)
        response = self._request(
            selector,
            self._window_s,
            watch=True,
            resource_version=listed.get("metadata", {}).get("resourceVersion"),
            timeout_seconds=max(1, int(self._window_s)),
        )
        self._since_s = self._clock.now_s()
        self._recovered()
        with self._lock:
            self._response = response
        try:
            if selector != self._selector or self._stopped.is_set():
                return
            for event in _events(response):
                self._apply(event, selector)
        except _ENDED:
            return  # no event within the window, or the connection broke: list again
        finally:
            with self._lock:
                self._response = None
            response.close()

    def _request(self, selector: str, silence_s: float, **options: Any) -> Any:
        timeouts = (_CONNECT_S, silence_s)
        return self._call(selector, **options, _preload_content=False, _request_timeout=timeouts)

    def _apply(self, event: Object, selector: str) -> None:
        kind, item = event["type"], event["object"]
        if kind in ("ADDED", "MODIFIED"):
            self._objects[_key(item)] = item
        elif kind == "DELETED":
            self._objects.pop(_key(item), None)
        elif kind == "ERROR":
            raise kubernetes.client.ApiException(
                status=item.get("code"), reason=item.get("reason", "the watch broke off")
            )
        else:
            return
        self._notify(selector)

    def _notify(self, selector: str) -> None:
        if selector == self._selector and not self._stopped.is_set():
            self._seen(selector, list(self._objects.values()))

    def _refused(self, error: kubernetes.client.ApiException) -> float | None:
        """Return the seconds to wait after `error`; None for the usual pause after a failure."""
        status = error.status
        if status == _GONE:  # the server has compacted the changes since the list: list again
            return None
        reason = f"{status} {error.reason}"
        if status == _FORBIDDEN:
            reason += ", it needs the verbs list and watch"
        if status == _ABSENT and self._absent_s is not None:
            self._failures = 0
            self._objects = {}
            self._notify(self._selector)
            self._log_once(str(status), logging.INFO, "the cluster has no %s (%s)", reason)
            return self._absent_s
        if status == _FORBIDDEN and self._forbidden_s is not None:
            self._failures = 0
            self._log_once(str(status), logging.WARNING, "%s are ignored: %s", reason)
            return self._forbidden_s
        self._log_once(str(status), logging.WARNING, _FAULT, reason)
        return None

    def _next_pause_s(self) -> float:
        self._failures += 1
        return _PAUSES_S[min(self._failures, len(_PAUSES_S)) - 1]

    def _recovered(self) -> None:
        if self._logged:
            self._logged = ""
            _log.info("%s are watched now", self._what)

    def _log_once(self, kind: str, level: int, text: str, reason: str) -> None:
        """Log a message unless the last one logged was of the same kind."""
        if kind != self._logged and not self._stopped.is_set():
            self._logged = kind
            _log.log(level, text, self._what, reason)


def client() -> Any:
    """Return an ApiClient from the in-cluster configuration, or else from the kubeconfig.

    Raises InvalidSettings if neither exists.
    """
    configuration = kubernetes.client.Configuration()
    try:
        kubernetes.config.load_incluster_config(client_configuration=configuration)
    except kubernetes.config.ConfigException:
        try:
            kubernetes.config.load_kube_config(client_configuration=configuration)
        except (kubernetes.config.ConfigException, OSError) as error:
            raise InvalidSettings(f"no Kubernetes configuration found: {error}") from error
    configuration.retries = False  # the watch retries by itself, with longer pauses
    return kubernetes.client.ApiClient(configuration)


def into(loop: asyncio.AbstractEventLoop, seen: Seen) -> Seen:
    """Return a callback that calls `seen` on the event loop, unless the loop is closed."""

    def hand_over(selector: str, found: Sequence[Object]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(seen, selector, found)

    return hand_over


async def stop(watches: Iterable[Watch]) -> None:
    """Stop all watches concurrently, without blocking the event loop."""
    await asyncio.gather(*(asyncio.to_thread(one.stop) for one in watches))


def _key(item: Object) -> str:
    name: str = item["metadata"]["name"]
    return name


def _events(response: Any) -> Iterator[Object]:
    """Yield the events of a watch response, which has one JSON object per line."""
    held = b""
    for chunk in response.stream(decode_content=True):
        *lines, held = (held + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield msgspec.json.decode(line)
