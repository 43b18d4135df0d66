"""Telling routers which blocks an evictor removed: what a file held, batched, then sent.

Why: a name tells the first block of a segment only, so headers are read before files go, but
only where somebody asked for events, and not of files that are as long as one block makes them.

Invariants: what is announced was removed; a removed block is announced within ANNOUNCE_S of the
next removal, and at the latest when its shard is done; a file whose header cannot be read is
announced by its first block, and counted.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import msgspec

from kvtier.clock import Clock, MonotonicClock, wall_s
from kvtier.errors import Corrupt
from kvtier.evictor.events import (
    Owner,
    block_of,
    encode_removed,
    topic,
    wants_whole_hashes,
)
from kvtier.evictor.layouts import Tree, foreign_block_of
from kvtier.evictor.options import Options
from kvtier.evictor.publishing import Publisher
from kvtier.evictor.reading import read_small
from kvtier.evictor.segments import Segments, open_segments
from kvtier.tiers.shared.format import PAGE_BYTES
from kvtier.tiers.shared.store import Store

ANNOUNCE_S: Final = 1.0
BATCH_BLOCKS: Final = 500
_CONFIG_BYTES_MAX: Final = 1 << 20


class Announcer(Protocol):
    """Told of each block that leaves. One thread; no method waits for a router."""

    def contents(self, tree: Tree, key: bytes, name: str, size_bytes: int) -> Sequence[bytes]:
        """The blocks of a file that is about to go. May read its header; never raises."""
        ...

    def removed(self, tree: Tree, keys: Sequence[bytes]) -> None:
        """They are gone."""
        ...

    def flush(self) -> None:
        """Send what waits."""
        ...


class Unannounced:
    """Nobody asked for events: nothing is read, nothing is told."""

    def contents(self, tree: Tree, key: bytes, name: str, size_bytes: int) -> Sequence[bytes]:
        """See Announcer."""
        return ()

    def removed(self, tree: Tree, keys: Sequence[bytes]) -> None:
        """See Announcer."""

    def flush(self) -> None:
        """See Announcer."""


class _Config(msgspec.Struct, frozen=True):
    """What is read of the `config.json` of other systems' trees."""

    model_name: str


class EventAnnouncer:
    """Announces on a publisher, which it does not close."""

    def __init__(
        self,
        store: Store,
        publisher: Publisher,
        options: Options,
        owner: Owner,
        *,
        clock: Clock | None = None,
        env: Mapping[str, str] = os.environ,
    ) -> None:
        """`env`: see `wants_whole_hashes`."""
        self._store = store
        self._publisher = publisher
        self._key_file = options.key_file
        self._owner: Owner = owner
        self._clock = clock or MonotonicClock()
        self._whole_hashes = wants_whole_hashes(env)
        self._segments: dict[str, Segments | None] = {}
        self._topics: dict[str, bytes] = {}
        self._waiting: dict[bytes, list[bytes]] = {}
        self._since_s = 0.0
        self.blocks = 0
        """Announced so far."""
        self.unread_files = 0
        """Announced by their first block only."""

    def contents(self, tree: Tree, key: bytes, name: str, size_bytes: int) -> Sequence[bytes]:
        """See Announcer."""
        if tree.is_foreign:
            return [block_of(*foreign_block_of(name))]
        try:
            segments = self._of(tree)
            if segments is not None:
                if size_bytes == _one_block_bytes(segments.space.block_bytes):
                    return [key]
                found = segments.read(key, name)
                return [] if found is None else found.keys
        except (OSError, Corrupt):
            pass  # the caller removes it all the same
        self.unread_files += 1
        return [key]

    def removed(self, tree: Tree, keys: Sequence[bytes]) -> None:
        """See Announcer."""
        now_s = self._clock.now_s()
        if not self._waiting:
            self._since_s = now_s
        waiting = self._waiting.setdefault(self._topic(tree), [])
        waiting += keys
        if len(waiting) >= BATCH_BLOCKS or now_s - self._since_s >= ANNOUNCE_S:
            self.flush()

    def flush(self) -> None:
        """See Announcer."""
        waiting, self._waiting = self._waiting, {}
        for to, keys in waiting.items():
            for start in range(0, len(keys), BATCH_BLOCKS):
                part = keys[start : start + BATCH_BLOCKS]
                payload = encode_removed(
                    part, self._owner, wall_s(), whole_hashes=self._whole_hashes
                )
                self._publisher.send(to, payload)
                self.blocks += len(part)

    def _of(self, tree: Tree) -> Segments | None:
        if tree.name not in self._segments:
            self._segments[tree.name] = open_segments(self._store, tree, self._key_file)
        return self._segments[tree.name]

    def _topic(self, tree: Tree) -> bytes:
        if tree.name not in self._topics:
            self._topics[tree.name] = topic(tree, self._model(tree))
        return self._topics[tree.name]

    def _model(self, tree: Tree) -> str:
        """As the manifest has it, or the configuration; else what the folder's name says."""
        try:
            if tree.is_foreign:
                read = read_small(self._store, f"{tree.name}/config.json", _CONFIG_BYTES_MAX)
                if read is not None:
                    return msgspec.json.decode(read[0], type=_Config).model_name
            elif (segments := self._of(tree)) is not None:
                return segments.space.model
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            pass
        return tree.model


def _one_block_bytes(block_bytes: int) -> int:
    """Length of a segment of one block: a page of header, and the payload in whole pages."""
    return PAGE_BYTES + -(-block_bytes // PAGE_BYTES) * PAGE_BYTES
