"""Which replicas there are: from flags, from a file that is re-read, or from a plug-in.

Why: the fleet does not care who tells it. A `ReplicaDiscovery` says the whole set, at first and
each time it changes. Invariant: a set that cannot be read never replaces one that could.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final, Protocol
from urllib.parse import urlsplit

import msgspec

from kvtier.errors import InvalidSettings
from kvtier.settings.document import Document, read_document

_log = logging.getLogger(__name__)

POLL_S: Final = 1.0
"""How often a file is looked at. A poll, since a mounted ConfigMap changes by a renamed link."""
_PORTS: Final = {"http": 80, "https": 443}
_EXAMPLE: Final = "replicas: [http://host:8000]"
_FORM: Final = "http://host:8000, or http://host:8000,model=NAME,name=NAME,label=KEY:VALUE"


class Replica(msgspec.Struct, frozen=True, kw_only=True):
    """A replica as somebody named it. Two of a set never share a name or an address."""

    name: str
    url: str
    """`http://host:port` or `https://host:port`, nothing after it."""
    models: frozenset[str] = frozenset()
    """What it serves; empty: it is asked for `/v1/models`."""
    labels: Mapping[str, str] = {}

    @property
    def address(self) -> str:
        """`host:port`, as in the header `target-pod`."""
        return self.url.partition("//")[2]


class ReplicaDiscovery(Protocol):
    """Where replicas are told from."""

    def watch(self) -> AsyncIterator[Sequence[Replica]]:
        """The whole set at once, and again after each change. Ends if it can never change.

        Raises InvalidSettings before the first set only; later it keeps the last good one.
        """
        ...


class StaticDiscovery:
    """Replicas that were named when the process started."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._replicas = tuple(replicas)

    async def watch(self) -> AsyncIterator[Sequence[Replica]]:
        """One set."""
        yield self._replicas


class FileDiscovery:
    """Replicas of a YAML file, and those of flags beside them."""

    def __init__(
        self,
        path: str,
        fixed: Sequence[Replica] = (),
        poll_s: float = POLL_S,
        flag: str = "--replicas",
    ) -> None:
        """`flag` names the file."""
        self._path = path
        self._flag = flag
        self._fixed = tuple(fixed)
        self._poll_s = poll_s

    async def watch(self) -> AsyncIterator[Sequence[Replica]]:
        """The file's set, and each later one that can be read."""
        stamp = _stamp(self._path)
        known = self._read()
        yield known
        while True:
            await asyncio.sleep(self._poll_s)
            seen = _stamp(self._path)
            if seen == stamp:
                continue
            stamp = seen
            try:
                found = self._read()
            except InvalidSettings as error:
                _log.warning("replicas stay as they were: %s", error)
                continue
            if found != known:
                known = found
                yield known

    def _read(self) -> tuple[Replica, ...]:
        return distinct((*self._fixed, *read_replicas(self._path, self._flag)), self._path)


def parse_replica(text: str, where: str) -> Replica:
    """`http://host:8000,model=m,name=a,label=zone:eu`. Raises InvalidSettings."""
    url, *parts = text.split(",")
    fields: dict[str, list[str]] = {"model": [], "name": [], "label": []}
    for part in parts:
        key, separator, value = part.partition("=")
        if key.strip() not in fields or not separator or not value.strip():
            raise InvalidSettings(f"{where}: {part!r} is not understood; write {_FORM}")
        fields[key.strip()].append(value.strip())
    labels = {}
    for label in fields["label"]:
        key, separator, value = label.partition(":")
        if not separator:
            raise InvalidSettings(f"{where}: label={label} has no value; write label=zone:eu")
        labels[key] = value
    if len(fields["name"]) > 1:
        raise InvalidSettings(f"{where}: a replica has one name")
    return _replica(url, where, "".join(fields["name"]), fields["model"], labels)


def read_replicas(path: str, flag: str = "--replicas") -> tuple[Replica, ...]:
    """The `replicas:` of the YAML file that `flag` names: a list as of flags, or settings by name.

    Raises InvalidSettings with file and line.
    """
    document = read_document(path, flag, _EXAMPLE)
    for key in document.data:
        if key != "replicas":
            raise InvalidSettings(
                f"{document.where((key,))}: unknown setting {key!r}; known is replicas"
            )
    found = document.data.get("replicas")
    where = document.where(("replicas",))
    if isinstance(found, list) and all(isinstance(item, str) for item in found):
        listed = [parse_replica(item, where) for item in found]
    elif isinstance(found, Mapping):
        listed = [_named(document, str(name), value) for name, value in found.items()]
    else:
        raise InvalidSettings(
            f"{where}: write `{_EXAMPLE}`, or "
            "`replicas: {a: {url: http://host:8000, models: [m]}}`"
        )
    return distinct(listed, path)


def distinct(replicas: Sequence[Replica], where: str) -> tuple[Replica, ...]:
    """The same, if no two share a name or an address. Raises InvalidSettings."""
    seen: set[str] = set()
    for replica in replicas:
        for mark in {replica.name, replica.address}:
            if mark in seen:
                raise InvalidSettings(f"{where}: {mark} stands there twice; keep one")
            seen.add(mark)
    return tuple(replicas)


def _named(document: Document, name: str, value: object) -> Replica:
    at = ("replicas", name)
    where = f"{document.where(at)}: {name}"
    if isinstance(value, str):
        value = {"url": value}
    if not isinstance(value, Mapping) or "url" not in value:
        raise InvalidSettings(f"{where}: write url: http://host:8000")
    for key in value:
        if key not in ("url", "models", "labels"):
            raise InvalidSettings(
                f"{document.where((*at, key))}: unknown setting {key!r}; "
                "known are url, models, labels"
            )
    models = value.get("models", [])
    labels = value.get("labels", {})
    if not isinstance(models, list) or not all(isinstance(model, str) for model in models):
        raise InvalidSettings(f"{document.where((*at, 'models'))}: write models: [name, name]")
    if not isinstance(labels, Mapping):
        raise InvalidSettings(f"{document.where((*at, 'labels'))}: write labels: {{zone: eu}}")
    texts = {str(key): str(text) for key, text in labels.items()}
    return _replica(str(value["url"]), where, name, models, texts)


def _replica(
    url: str, where: str, name: str, models: Sequence[str], labels: Mapping[str, str]
) -> Replica:
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError as error:
        raise InvalidSettings(f"{where}: {url!r}: {error}; write {_FORM}") from error
    host = parts.hostname
    if parts.scheme not in _PORTS or not host or parts.username or parts.query or parts.fragment:
        raise InvalidSettings(f"{where}: {url!r} is no replica's address; write {_FORM}")
    if parts.path not in ("", "/"):
        raise InvalidSettings(
            f"{where}: {url!r}: paths are those of the requests; write {parts.scheme}://host:port"
        )
    shown = f"[{host}]" if ":" in host else host
    address = f"{shown}:{port or _PORTS[parts.scheme]}"
    return Replica(
        name=name or address,
        url=f"{parts.scheme}://{address}",
        models=frozenset(models),
        labels=dict(labels),
    )


def _stamp(path: str) -> tuple[int, int, int] | None:
    """Changes whenever the file was written or replaced; None where there is none."""
    try:
        status = os.stat(os.path.expanduser(path))
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
