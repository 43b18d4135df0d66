"""Events about removed blocks: their format, the socket, and what is announced when.

A router keeps an index of the blocks that each replica can load. Engines do not report what an
evictor removes from shared storage, so the evictor publishes it itself, in the format of vLLM's
KV events (docs/reference/evictor.md). A file's name tells only the first block of its segment;
with `--events`, headers are therefore read before files are removed, except those of files that
are as long as a single block makes them.

Invariants: a message belongs to one tree and an event to one KV-cache group; the sequence numbers
of a topic count from 0 without gaps; only removed blocks are announced, within ANNOUNCE_S of the
next removal and at the latest when their shard is done; a file whose header cannot be read is
announced by its first block, and counted.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Final, Literal, Protocol

import msgspec

from kvtier.clock import Clock, MonotonicClock, wall_s
from kvtier.errors import Corrupt, InvalidSettings
from kvtier.evictor.layouts import StoreTree, foreign_block_of
from kvtier.evictor.listing import read_small
from kvtier.evictor.options import EvictorOptions
from kvtier.evictor.segments import SegmentReader, open_segment_reader
from kvtier.tiers.shared.format import PAGE_BYTES
from kvtier.tiers.shared.store import Store

MEDIUM: Final = "STORAGE"
LOCALITY: Final = "REMOTE"
INT_HASHES: Final = "VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES"
"""vLLM's variable: 0 for whole hashes, anything else for their last 64 bits as a number."""
Owner = Literal["shared", "objectstore"]
"""The tier whose blocks these are, as engines name it in their own events."""
_GROUP_BYTES = 4
_LAST_64_BITS = (1 << 64) - 1
_RANK = 0
"""Events carry the rank of a data-parallel engine. An evictor is none; one engine has rank 0."""
QUEUE_MESSAGES: Final = 10_000
_LINGER_MS: Final = 1000
"""So long the last messages may take when the evictor ends."""
_SEQUENCE_BYTES: Final = 8
_CONNECT = "connect:"
_ENDPOINT = re.compile(r"tcp://[^\s/]+:(?:(?P<port>\d{1,5})|\*)|ipc://\S+")
_PORT_MAX: Final = 65_535
ANNOUNCE_S: Final = 1.0
BATCH_BLOCKS: Final = 500
_CONFIG_BYTES_MAX: Final = 1 << 20


class BlockRemoved(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Blocks of one group that are in shared storage no more. Fields and order are vLLM's."""

    block_hashes: list[int] | list[bytes]
    medium: str
    group_idx: int
    locality: str
    ownership: str


class EventBatch(msgspec.Struct, frozen=True, array_like=True):
    """The third part of a message."""

    ts: float
    """Unix seconds of the sender's clock."""
    events: list[BlockRemoved]
    data_parallel_rank: int = _RANK


def topic(tree: StoreTree, model: str) -> bytes:
    """`kv@<folder>@<model>`: where engines have their pod, the key space stands."""
    return f"kv@{tree.name}@{model}".encode()


def block_of(hashed: bytes, group: int) -> bytes:
    """The key of a block as `encode_removed` takes it."""
    return hashed + group.to_bytes(_GROUP_BYTES, "big")


def encode_removed(
    keys: Sequence[bytes], owner: Owner, now_s: float, *, whole_hashes: bool
) -> bytes:
    """Keys are a block's hash and 4 bytes of group index. A microsecond a key."""
    groups: dict[int, list[bytes]] = {}
    for key in keys:
        group = int.from_bytes(key[-_GROUP_BYTES:], "big")
        groups.setdefault(group, []).append(key[:-_GROUP_BYTES])
    events = [
        BlockRemoved(
            hashes if whole_hashes else [_shortened(one) for one in hashes],
            MEDIUM,
            group,
            LOCALITY,
            owner,
        )
        for group, hashes in groups.items()
    ]
    return msgspec.msgpack.encode(EventBatch(now_s, events))


def wants_whole_hashes(env: Mapping[str, str]) -> bool:
    """As vLLM decides it, so that both name a block alike."""
    return env.get(INT_HASHES, "1").strip() == "0"


def _shortened(hashed: bytes) -> int:
    return int.from_bytes(hashed, "big") & _LAST_64_BITS


class Publisher:
    """Binds to an endpoint, or connects to it with `connect:` before. One thread."""

    def __init__(
        self, endpoint: str, queue_messages: int = QUEUE_MESSAGES, setting: str = "--events"
    ) -> None:
        """Raises InvalidSettings naming `setting` and the fix."""
        address = endpoint.removeprefix(_CONNECT)
        found = _ENDPOINT.fullmatch(address)
        if found is None or int(found["port"] or 0) > _PORT_MAX:
            raise InvalidSettings(
                f"{setting}: {endpoint!r} is no endpoint; write tcp://127.0.0.1:5559 or "
                "ipc:///run/kv-events to listen there, connect:tcp://router:5559 to call"
            )
        try:
            import zmq
        except ImportError as error:
            raise InvalidSettings(
                f"{setting}: sending needs the library pyzmq: pip install 'kvtier[events]'"
            ) from error
        self._zmq = zmq
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.setsockopt(zmq.SNDHWM, queue_messages)
        self._socket.setsockopt(zmq.LINGER, _LINGER_MS)
        self._socket.setsockopt(zmq.XPUB_NODROP, 1)
        self._sequences: dict[bytes, int] = {}
        self.slow_subscribers = 0
        """Times that one was found to have fallen behind."""
        try:
            if endpoint.startswith(_CONNECT):
                self._socket.connect(address)
            else:
                self._socket.bind(address)
        except zmq.ZMQError as error:
            self.close()
            raise InvalidSettings(
                f"{setting}: {endpoint} cannot be used ({error.strerror}); choose an address of "
                "this host and a free port, or write connect: before that of a subscriber"
            ) from error

    @property
    def endpoint(self) -> str:
        """What was bound or connected to last; tells the port where `*` was asked for."""
        return self._socket.getsockopt_string(self._zmq.LAST_ENDPOINT)

    def send(self, topic: bytes, payload: bytes) -> None:
        """Never waits. Nobody may be listening, which is nobody's fault."""
        sequence = self._sequences.get(topic, 0)
        self._sequences[topic] = sequence + 1
        parts = (topic, sequence.to_bytes(_SEQUENCE_BYTES, "big"), payload)
        if self._was_sent(parts):
            return
        self._socket.getsockopt(self._zmq.EVENTS)  # makes it look how far subscribers have come
        if self._was_sent(parts):
            return
        # Somebody's queue is full, and ZeroMQ refuses all of them to tell. So: without that one.
        self.slow_subscribers += 1
        self._socket.setsockopt(self._zmq.XPUB_NODROP, 0)
        self._socket.send_multipart(parts, self._zmq.NOBLOCK)
        self._socket.setsockopt(self._zmq.XPUB_NODROP, 1)

    def _was_sent(self, parts: tuple[bytes, bytes, bytes]) -> bool:
        """False, and sent to nobody, where a queue is full."""
        try:
            self._socket.send_multipart(parts, self._zmq.NOBLOCK)
        except self._zmq.Again:
            return False
        return True

    def close(self) -> None:
        """Send what is queued, for a second at most. Idempotent."""
        self._socket.close()
        self._context.term()


class Announcer(Protocol):
    """Told of each block that leaves. One thread; no method waits for a router."""

    def contents(self, tree: StoreTree, key: bytes, name: str, size_bytes: int) -> Sequence[bytes]:
        """The blocks of a file that is about to go. May read its header; never raises."""
        ...

    def removed(self, tree: StoreTree, keys: Sequence[bytes]) -> None:
        """They are gone."""
        ...

    def flush(self) -> None:
        """Send what waits."""
        ...


class NoAnnouncer:
    """Nobody asked for events: nothing is read, nothing is told."""

    def contents(self, tree: StoreTree, key: bytes, name: str, size_bytes: int) -> Sequence[bytes]:
        """See Announcer."""
        return ()

    def removed(self, tree: StoreTree, keys: Sequence[bytes]) -> None:
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
        options: EvictorOptions,
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
        self._segments: dict[str, SegmentReader | None] = {}
        self._topics: dict[str, bytes] = {}
        self._waiting: dict[bytes, list[bytes]] = {}
        self._since_s = 0.0
        self.blocks = 0
        """Announced so far."""
        self.unread_files = 0
        """Announced by their first block only."""

    def contents(self, tree: StoreTree, key: bytes, name: str, size_bytes: int) -> Sequence[bytes]:
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

    def removed(self, tree: StoreTree, keys: Sequence[bytes]) -> None:
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

    def _of(self, tree: StoreTree) -> SegmentReader | None:
        if tree.name not in self._segments:
            self._segments[tree.name] = open_segment_reader(self._store, tree, self._key_file)
        return self._segments[tree.name]

    def _topic(self, tree: StoreTree) -> bytes:
        if tree.name not in self._topics:
            self._topics[tree.name] = topic(tree, self._model(tree))
        return self._topics[tree.name]

    def _model(self, tree: StoreTree) -> str:
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
