"""Subscriptions to evictors, which publish the blocks they remove from shared storage.

An engine publishes what it writes to shared storage, but not what an evictor removes from it. Each
evictor publishes that itself (`kvtier evict --events`). The topic names the model by its path or
its Hugging Face id, which replicas list as the `root` of their models.

Invariants: an evictor that cannot be reached is retried and affects nothing else; after `close` no
task is left.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

import zmq
import zmq.asyncio

from kvtier.errors import InvalidSettings
from kvtier.index.fleet.events import KVEvent
from kvtier.index.fleet.precise import PreciseIndex
from kvtier.router.learn.events import EventCounts, EventStream

_log = logging.getLogger(__name__)

_ENDPOINT: Final = re.compile(
    r"tcp://[^\s/:,]+:(?P<port>\d{1,5})|tcp://\[[^\s/]+\]:\d{1,5}|ipc://\S+"
)
_PORT_MAX: Final = 65_535


def parse_evictors(texts: Iterable[str], setting: str) -> tuple[str, ...]:
    """Return the distinct endpoints in `texts`, each a comma-separated list.

    `setting` is the flag's name, for error messages. Raises InvalidSettings.
    """
    found: dict[str, None] = {}
    for text in texts:
        for part in filter(None, (part.strip() for part in text.split(","))):
            match = _ENDPOINT.fullmatch(part)
            if match is None or int(match["port"] or 1) not in range(1, _PORT_MAX + 1):
                raise InvalidSettings(
                    f"{setting}: {part!r} is not an evictor's endpoint; write tcp://evictor:5559, "
                    "where `kvtier evict --events tcp://0.0.0.0:5559` listens"
                )
            found[part] = None
    return tuple(found)


class SharedSink:
    """An EventSink for an evictor's events about shared storage.

    A topic, `kv@<publisher>@<model>`, stands for the blocks of one model.
    """

    def __init__(
        self, indexes: Sequence[PreciseIndex], models: Callable[[str], Collection[str]]
    ) -> None:
        """`models` maps a model's name in a topic to its names in the indexes."""
        self._indexes = indexes
        self._models = models

    def accepts(self, topic: bytes) -> bool:
        """Return whether any replica serves the topic's model."""
        return bool(self._models_of(topic))

    def apply(self, topic: bytes, events: Sequence[KVEvent]) -> None:
        """Apply `events` to every index, for each name of the topic's model."""
        for model in self._models_of(topic):
            for index in self._indexes:
                index.apply_shared(model, events)

    def _models_of(self, topic: bytes) -> Collection[str]:
        parts = topic.split(b"@", 2)
        return self._models(parts[2].decode("utf-8", "replace")) if len(parts) == 3 else ()

    def begin(self) -> None:
        """Do nothing: an evictor publishes removals only, so it never describes all blocks."""

    def reset(self) -> None:
        """Do nothing: a replica that looks for a block whose removal was missed finds it gone."""


class Evictors:
    """Subscriptions to any number of evictors. Belongs to one event loop."""

    def __init__(self, endpoints: Sequence[str], sink: SharedSink) -> None:
        self._sink = sink
        self._counts = {endpoint: EventCounts() for endpoint in endpoints}
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def counts(self) -> Mapping[str, EventCounts]:
        """The streams' counters by endpoint."""
        return self._counts

    def open(self, context: zmq.asyncio.Context) -> None:
        """Start following the evictors."""
        for endpoint, counts in self._counts.items():
            stream = EventStream(endpoint, self._sink, context=context, counts=counts)
            self._tasks.append(asyncio.create_task(stream.run(f"evictor {endpoint}")))

    async def close(self) -> None:
        """Stop following. Must be called before the context is terminated. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
