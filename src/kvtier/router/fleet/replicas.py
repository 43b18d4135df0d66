"""Replicas, and their discovery from flags or from a file that is reread when it changes.

The fleet does not depend on where replicas are named: a `ReplicaDiscovery` yields the whole set at
first and after each change. Invariant: an invalid set never replaces a valid one.
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
"""How often the file is checked. It is polled because Kubernetes updates a mounted ConfigMap by
renaming a symbolic link, which a watch on the file itself does not report."""
_PORTS: Final = {"http": 80, "https": 443}
_EXAMPLE: Final = "replicas: [http://host:8000]"
_FORM: Final = "http://host:8000, or http://host:8000,model=NAME,name=NAME,label=KEY:VALUE"


class Replica(msgspec.Struct, frozen=True, kw_only=True):
    """One engine as discovery names it. No two replicas of a set share a name or an address."""

    name: str
    url: str
    """`http://host:port` or `https://host:port`, without a path."""
    models: frozenset[str] = frozenset()
    """The models it serves; if empty, health checks read them from its `/v1/models`."""
    labels: Mapping[str, str] = {}

    @property
    def address(self) -> str:
        """The address as `host:port`, without the scheme."""
        return self.url.partition("//")[2]


class ReplicaDiscovery(Protocol):
    """A source of the set of replicas."""

    def watch(self) -> AsyncIterator[Sequence[Replica]]:
        """Yield the whole set, and again after each change. Ends if the set can never change.

        Raises InvalidSettings only before the first set; later the last valid set stays.
        """
        ...


class StaticDiscovery:
    """Replicas that are given when the process starts and never change."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._replicas = tuple(replicas)

    async def watch(self) -> AsyncIterator[Sequence[Replica]]:
        """Yield the one set and end."""
        yield self._replicas


class FileDiscovery:
    """Replicas listed in a YAML file, which may be edited at any time, and in flags."""

    def __init__(
        self,
        path: str,
        fixed: Sequence[Replica] = (),
        poll_s: float = POLL_S,
        flag: str = "--replicas",
    ) -> None:
        """`flag` is the flag that named the file, for error messages."""
        self._path = path
        self._flag = flag
        self._fixed = tuple(fixed)
        self._poll_s = poll_s

    async def watch(self) -> AsyncIterator[Sequence[Replica]]:
        """Yield the file's set, and each later set that is valid."""
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
                _log.warning("the replicas are left unchanged: %s", error)
                continue
            if found != known:
                known = found
                yield known

    def _read(self) -> tuple[Replica, ...]:
        return distinct((*self._fixed, *read_replicas(self._path, self._flag)), self._path)


def parse_replica(text: str, where: str) -> Replica:
    """Parse `http://host:8000,model=m,name=a,label=zone:eu`.

    `where` is the flag or the file and line, for error messages. Raises InvalidSettings.
    """
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
        raise InvalidSettings(f"{where}: a replica has only one name")
    return _replica(url, where, "".join(fields["name"]), fields["model"], labels)


def read_replicas(path: str, flag: str = "--replicas") -> tuple[Replica, ...]:
    """Read the `replicas:` of the YAML file that `flag` names.

    They are either a list in the flags' syntax or a mapping of name to settings. Raises
    InvalidSettings with file and line.
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
    """Return `replicas`. Raises InvalidSettings if two of them share a name or an address."""
    seen: set[str] = set()
    for replica in replicas:
        for mark in {replica.name, replica.address}:
            if mark in seen:
                raise InvalidSettings(f"{where}: {mark} is listed twice; keep one of them")
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
        raise InvalidSettings(f"{where}: {url!r} is not a replica's address; write {_FORM}")
    if parts.path not in ("", "/"):
        raise InvalidSettings(
            f"{where}: {url!r}: a replica's address has no path; write {parts.scheme}://host:port"
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
    """Return a stamp that changes when the file is written or replaced; None if it is missing."""
    try:
        status = os.stat(os.path.expanduser(path))
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
