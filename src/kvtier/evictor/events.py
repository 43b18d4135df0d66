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
"""vLLM's variable: 0 for whole hashes, anything else for their last 64 bits as an integer."""
Owner = Literal["shared", "objectstore"]
"""The tier that holds the blocks, as engines name it in their own events."""

_GROUP_BYTES = 4
_LAST_64_BITS = (1 << 64) - 1
_RANK = 0
"""The data-parallel rank in events. An evictor has none, so it sends that of a single engine."""

QUEUE_MESSAGES: Final = 10_000
"""Messages that wait for each subscriber, at most."""

_LINGER_MS: Final = 1000
"""Time that the last messages may take when the evictor exits."""
_SEQUENCE_BYTES: Final = 8
_CONNECT = "connect:"
_ENDPOINT = re.compile(r"tcp://[^\s/]+:(?:(?P<port>\d{1,5})|\*)|ipc://\S+")
_PORT_MAX: Final = 65_535

ANNOUNCE_S: Final = 1.0
"""Age at which waiting removals are sent, with the next removal."""
BATCH_BLOCKS: Final = 500
"""Blocks in one message, at most."""

_CONFIG_BYTES_MAX: Final = 1 << 20


class BlockRemoved(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Blocks of one group that were removed from shared storage. Fields and order are vLLM's."""

    block_hashes: list[int] | list[bytes]
    medium: str
    group_idx: int
    locality: str
    ownership: str


class EventBatch(msgspec.Struct, frozen=True, array_like=True):
    """The payload of a message, which is its third part."""

    ts: float
    """Unix seconds of the sender's clock."""
    events: list[BlockRemoved]
    data_parallel_rank: int = _RANK


def topic(tree: StoreTree, model: str) -> bytes:
    """Return `kv@<folder>@<model>`; engines have the name of their pod instead of the folder."""
    return f"kv@{tree.name}@{model}".encode()


def block_of(hashed: bytes, group: int) -> bytes:
    """Return the key of a block in the form that `encode_removed` takes."""
    return hashed + group.to_bytes(_GROUP_BYTES, "big")


def encode_removed(
    keys: Sequence[bytes], owner: Owner, now_s: float, *, whole_hashes: bool
) -> bytes:
    """Encode the removal of `keys`, each a block's hash followed by 4 bytes of group index.

    Costs about a microsecond per key.
    """
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
    """Return True if vLLM publishes whole hashes with this environment."""
    return env.get(INT_HASHES, "1").strip() == "0"


def _shortened(hashed: bytes) -> int:
    return int.from_bytes(hashed, "big") & _LAST_64_BITS


class Publisher:
    """A ZeroMQ PUB socket that sends three-part messages as vLLM does. Used by one thread.

    It listens at its endpoint, or connects to it if `connect:` precedes it. Sending never waits:
    each subscriber has a queue of QUEUE_MESSAGES. A subscriber whose queue is full is counted and
    loses messages until it catches up; it notices by the gaps in the sequence numbers. pyzmq is
    imported here, so that only `--events` needs it.
    """

    def __init__(
        self, endpoint: str, queue_messages: int = QUEUE_MESSAGES, setting: str = "--events"
    ) -> None:
        """Open the socket. Raises InvalidSettings naming `setting` and how to correct it."""
        address = endpoint.removeprefix(_CONNECT)
        found = _ENDPOINT.fullmatch(address)
        if found is None or int(found["port"] or 0) > _PORT_MAX:
            raise InvalidSettings(
                f"{setting}: {endpoint!r} is not an endpoint; write tcp://127.0.0.1:5559 or "
                "ipc:///run/kv-events to listen there, connect:tcp://router:5559 to connect"
            )
        try:
            import zmq
        except ImportError as error:
            raise InvalidSettings(
                f"{setting}: publishing events needs pyzmq: pip install 'kvtier[events]'"
            ) from error
        self._zmq = zmq
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.setsockopt(zmq.SNDHWM, queue_messages)
        self._socket.setsockopt(zmq.LINGER, _LINGER_MS)
        self._socket.setsockopt(zmq.XPUB_NODROP, 1)
        self._sequences: dict[bytes, int] = {}
        self.slow_subscribers = 0
        """Number of times that a subscriber's queue was full."""
        try:
            if endpoint.startswith(_CONNECT):
                self._socket.connect(address)
            else:
                self._socket.bind(address)
        except zmq.ZMQError as error:
            self.close()
            raise InvalidSettings(
                f"{setting}: {endpoint} cannot be used ({error.strerror}); choose an address of "
                "this host and a free port, or write connect: before the address of a subscriber"
            ) from error

    @property
    def endpoint(self) -> str:
        """The address in use, with the chosen port if the endpoint has `*`."""
        return self._socket.getsockopt_string(self._zmq.LAST_ENDPOINT)

    def send(self, topic: bytes, payload: bytes) -> None:
        """Send one message without waiting. Without subscribers the message is lost."""
        sequence = self._sequences.get(topic, 0)
        self._sequences[topic] = sequence + 1
        parts = (topic, sequence.to_bytes(_SEQUENCE_BYTES, "big"), payload)
        if self._was_sent(parts):
            return
        # Reading EVENTS makes ZeroMQ update the state of the queues.
        self._socket.getsockopt(self._zmq.EVENTS)
        if self._was_sent(parts):
            return
        # A subscriber's queue is full, which XPUB_NODROP reports by sending to none of them. Send
        # to all others.
        self.slow_subscribers += 1
        self._socket.setsockopt(self._zmq.XPUB_NODROP, 0)
        self._socket.send_multipart(parts, self._zmq.NOBLOCK)
        self._socket.setsockopt(self._zmq.XPUB_NODROP, 1)

    def _was_sent(self, parts: tuple[bytes, bytes, bytes]) -> bool:
        """Send to all subscribers; if a queue is full, send to none and return False."""
        try:
            self._socket.send_multipart(parts, self._zmq.NOBLOCK)
        except self._zmq.Again:
            return False
        return True

    def close(self) -> None:
        """Send queued messages for up to a second, then close the socket. Idempotent."""
        self._socket.close()
        self._context.term()


class Announcer(Protocol):
    """Announces removed blocks. Used by one thread; no method waits for a router."""

    def contents(self, tree: StoreTree, key: bytes, name: str, size_bytes: int) -> Sequence[bytes]:
        """Return the blocks of a file before it is removed. May read its header; never raises."""
        ...

    def removed(self, tree: StoreTree, keys: Sequence[bytes]) -> None:
        """Announce that `keys` were removed, now or in a later batch."""
        ...

    def flush(self) -> None:
        """Send all waiting announcements."""
        ...


class NoAnnouncer:
    """An announcer for runs without `--events`: it reads and sends nothing."""

    def contents(self, tree: StoreTree, key: bytes, name: str, size_bytes: int) -> Sequence[bytes]:
        """Return no blocks."""
        return ()

    def removed(self, tree: StoreTree, keys: Sequence[bytes]) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing, because nothing waits."""


class _Config(msgspec.Struct, frozen=True):
    """The field that is read from the `config.json` of other systems' trees."""

    model_name: str


class EventAnnouncer:
    """An announcer that sends events through a publisher. It does not close the publisher."""

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
        """Create an announcer; `env` decides the form of hashes (`wants_whole_hashes`)."""
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
        """Blocks announced so far."""
        self.unread_files = 0
        """Files announced by their first block only, because their header could not be read."""

    def contents(self, tree: StoreTree, key: bytes, name: str, size_bytes: int) -> Sequence[bytes]:
        """Return the blocks of a file, from its name, its length or its header."""
        if tree.is_foreign:
            return [block_of(*foreign_block_of(name))]
        try:
            segments = self._reader(tree)
            if segments is not None:
                if size_bytes == _one_block_bytes(segments.space.block_bytes):
                    return [key]
                found = segments.read(key, name)
                return [] if found is None else found.keys
        except (OSError, Corrupt):
            pass  # The file is removed anyway; only its first block is known.
        self.unread_files += 1
        return [key]

    def removed(self, tree: StoreTree, keys: Sequence[bytes]) -> None:
        """Add `keys` to the waiting batch; send it if it is full or old enough."""
        now_s = self._clock.now_s()
        if not self._waiting:
            self._since_s = now_s
        waiting = self._waiting.setdefault(self._topic(tree), [])
        waiting += keys
        if len(waiting) >= BATCH_BLOCKS or now_s - self._since_s >= ANNOUNCE_S:
            self.flush()

    def flush(self) -> None:
        """Send all waiting announcements."""
        waiting, self._waiting = self._waiting, {}
        for to, keys in waiting.items():
            for start in range(0, len(keys), BATCH_BLOCKS):
                part = keys[start : start + BATCH_BLOCKS]
                payload = encode_removed(
                    part, self._owner, wall_s(), whole_hashes=self._whole_hashes
                )
                self._publisher.send(to, payload)
                self.blocks += len(part)

    def _reader(self, tree: StoreTree) -> SegmentReader | None:
        if tree.name not in self._segments:
            self._segments[tree.name] = open_segment_reader(self._store, tree, self._key_file)
        return self._segments[tree.name]

    def _topic(self, tree: StoreTree) -> bytes:
        if tree.name not in self._topics:
            self._topics[tree.name] = topic(tree, self._model(tree))
        return self._topics[tree.name]

    def _model(self, tree: StoreTree) -> str:
        """Return the model from the manifest or `config.json`, else from the folder's name."""
        try:
            if tree.is_foreign:
                read = read_small(self._store, f"{tree.name}/config.json", _CONFIG_BYTES_MAX)
                if read is not None:
                    return msgspec.json.decode(read[0], type=_Config).model_name
            elif (segments := self._reader(tree)) is not None:
                return segments.space.model
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            pass
        return tree.model


def _one_block_bytes(block_bytes: int) -> int:
    """Return the length of a segment of one block: a header page and whole payload pages."""
    return PAGE_BYTES + -(-block_bytes // PAGE_BYTES) * PAGE_BYTES
