"""Those who keep shared storage within its bounds, followed for what they remove.

An engine tells what it writes to shared storage, and not what an evictor takes from there. Each
evictor publishes (`kvtier evict --events`); a topic names the model by its path or hub id, which
is what replicas list as the root of their models.

Invariants: an evictor that cannot be reached ends nothing and is tried again; after `close` no
task of ours is left.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

import zmq
import zmq.asyncio

from kvtier.errors import InvalidSettings
from kvtier.index.fleet.changes import Change
from kvtier.index.fleet.precise import PreciseIndex
from kvtier.router.learn.events import EventCounts, EventStream

_log = logging.getLogger(__name__)

_ENDPOINT: Final = re.compile(
    r"tcp://[^\s/:,]+:(?P<port>\d{1,5})|tcp://\[[^\s/]+\]:\d{1,5}|ipc://\S+"
)
_PORT_MAX: Final = 65_535


def parse_evictors(texts: Iterable[str], setting: str) -> tuple[str, ...]:
    """Endpoints, each once; several in one text are divided by commas. Raises InvalidSettings."""
    found: dict[str, None] = {}
    for text in texts:
        for part in filter(None, (part.strip() for part in text.split(","))):
            match = _ENDPOINT.fullmatch(part)
            if match is None or int(match["port"] or 1) not in range(1, _PORT_MAX + 1):
                raise InvalidSettings(
                    f"{setting}: {part!r} is no evictor's endpoint; write tcp://evictor:5559, "
                    "where `kvtier evict --events tcp://0.0.0.0:5559` listens"
                )
            found[part] = None
    return tuple(found)


class SharedSink:
    """Events of an evictor, of storage that replicas share: a topic, `kv@<who>@<model>`, a tree."""

    def __init__(
        self, indexes: Sequence[PreciseIndex], models: Callable[[str], Collection[str]]
    ) -> None:
        """`models`: what the indexes call the models that a topic calls so."""
        self._indexes = indexes
        self._models = models

    def accepts(self, topic: bytes) -> bool:
        """Whether replicas serve the model."""
        return bool(self._models_of(topic))

    def apply(self, topic: bytes, changes: Sequence[Change]) -> None:
        """See EventSink."""
        for model in self._models_of(topic):
            for index in self._indexes:
                index.apply_shared(model, changes)

    def _models_of(self, topic: bytes) -> Collection[str]:
        parts = topic.split(b"@", 2)
        return self._models(parts[2].decode("utf-8", "replace")) if len(parts) == 3 else ()

    def begin(self) -> None:
        """Who tells what leaves storage need not have told what is there."""

    def reset(self) -> None:
        """What it did not tell is found missing by the replica that looks for it."""


class Evictors:
    """Any number. Belongs to one event loop."""

    def __init__(self, endpoints: Sequence[str], sink: SharedSink) -> None:
        self._sink = sink
        self._counts = {endpoint: EventCounts() for endpoint in endpoints}
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def counts(self) -> Mapping[str, EventCounts]:
        """By endpoint."""
        return self._counts

    def open(self, context: zmq.asyncio.Context) -> None:
        """Begin to follow them."""
        for endpoint, counts in self._counts.items():
            stream = EventStream(endpoint, self._sink, context=context, counts=counts)
            self._tasks.append(asyncio.create_task(stream.run(f"evictor {endpoint}")))

    async def close(self) -> None:
        """Before the context is closed. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
