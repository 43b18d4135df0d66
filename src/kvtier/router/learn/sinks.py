"""Who is told what a stream of KV events brings: a replica's part of an index, or a shared pool.

Invariant: nothing here raises for what a publisher sends, its topic included.
"""

from collections.abc import Callable, Collection
from collections.abc import Sequence as Items
from typing import Protocol

from kvtier.index.fleet.changes import Change
from kvtier.index.fleet.precise import PreciseIndex


class Sink(Protocol):
    """Who is told."""

    def takes(self, topic: bytes) -> bool:
        """Whether messages of this topic mean anything to it."""
        ...

    def apply(self, topic: bytes, changes: Items[Change]) -> None:
        """In the order in which they were sent."""
        ...

    def begin(self) -> None:
        """What comes now is told from the publisher's beginning."""
        ...

    def clear(self) -> None:
        """What was told before is void, or not whole."""
        ...


class ReplicaSink:
    """A replica's own events, whatever topic its engine was given."""

    def __init__(self, index: PreciseIndex, replica: str) -> None:
        self._index = index
        self._replica = replica

    def takes(self, topic: bytes) -> bool:
        """See Sink."""
        return True

    def apply(self, topic: bytes, changes: Items[Change]) -> None:
        """See Sink."""
        self._index.apply(self._replica, changes)

    def begin(self) -> None:
        """See Sink."""
        self._index.begin(self._replica)

    def clear(self) -> None:
        """See Sink."""
        self._index.reset(self._replica)


class SharedSink:
    """Events of an evictor, of storage that replicas share: a topic, `kv@<who>@<model>`, a tree."""

    def __init__(
        self, indexes: Items[PreciseIndex], models: Callable[[str], Collection[str]]
    ) -> None:
        """`models`: what the indexes call the models that a topic calls so."""
        self._indexes = indexes
        self._models = models

    def takes(self, topic: bytes) -> bool:
        """Whether replicas serve the model."""
        return bool(self._models_of(topic))

    def apply(self, topic: bytes, changes: Items[Change]) -> None:
        """See Sink."""
        for model in self._models_of(topic):
            for index in self._indexes:
                index.apply_shared(model, changes)

    def _models_of(self, topic: bytes) -> Collection[str]:
        parts = topic.split(b"@", 2)
        return self._models(parts[2].decode("utf-8", "replace")) if len(parts) == 3 else ()

    def begin(self) -> None:
        """Who tells what leaves storage need not have told what is there."""

    def clear(self) -> None:
        """What it did not tell is found missing by the replica that looks for it."""
