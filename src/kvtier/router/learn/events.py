"""The stream of KV events of one publisher over ZeroMQ, with detection and replay of gaps.

A publisher numbers its messages. Missing messages are requested from its replay socket, if it has
one. If that fails, the sink is reset, and its state is rebuilt from later events: an engine stores,
and therefore publishes, a prefix again when it uses it. A connection that breaks may mean that the
engine has restarted, so it counts as a gap that reaches back to the first message.

Invariants: nothing that a publisher sends raises an exception here; the event loop is not blocked
for more than SLICE_BLOCKS blocks, and large messages are decoded on a thread; memory is bounded by
the sockets' high-water marks; `EventSink.begin` is called only if every message of the publisher
since its first is applied.
"""

import asyncio
import enum
import logging
from collections.abc import Sequence
from typing import Any, Final, Protocol

import msgspec
import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from kvtier.index.fleet.events import DeviceCleared, KVEvent, split_event
from kvtier.router.learn.wire import PAYLOAD_MAX, Batch, decode

_log = logging.getLogger(__name__)

SLICE_BLOCKS: Final = 512
"""Blocks applied before the event loop may run other tasks: two or three milliseconds."""
REPLAY_S: Final = 5.0
"""The timeout of a replay. vLLM replies between two messages, which are at most 0.1 s apart."""
RETRY_S: Final = 1.0
"""The pause before a failed stream restarts; it doubles each time."""

_RETRY_MAX_S: Final = 60.0
_QUEUE_MESSAGES: Final = 4_000
"""The receive queue: a minute or more of a busy engine. Beyond it, messages are replayed."""
_DRAINED: Final = 32
"""Messages received without waiting before the event loop may run other tasks."""
_INLINE_MAX: Final = 64 << 10
"""Bytes of a message that is decoded on the event loop: a few milliseconds at worst."""
_TOPICS_MAX: Final = 1024
_NUMBER_BYTES: Final = 8
_END: Final = (-1).to_bytes(_NUMBER_BYTES, "big", signed=True)
_RECONNECT_MS: Final = 200
_RECONNECT_MAX_MS: Final = 1000
"""Kept short: events published before the connection is back are lost without a replay socket."""


class EventCounts(msgspec.Struct):
    """The counters of a stream since it was created."""

    messages: int = 0
    blocks: int = 0
    bad_messages: int = 0
    bad_events: int = 0
    repeated: int = 0
    gaps: int = 0
    replays: int = 0
    """Gaps that were filled."""
    resyncs: int = 0
    """Gaps that could not be filled, so that the sink was reset."""
    restarts: int = 0
    foreign: int = 0
    """Messages about a model that no replica serves."""


class EventSink(Protocol):
    """A receiver of the events of a stream. Its methods must not raise."""

    def accepts(self, topic: bytes) -> bool:
        """Return whether messages of `topic` concern this sink."""
        ...

    def apply(self, topic: bytes, events: Sequence[KVEvent]) -> None:
        """Apply events, which come in the order in which they were sent."""
        ...

    def begin(self) -> None:
        """Note that the events from now on are complete since the publisher's first."""
        ...

    def reset(self) -> None:
        """Remove everything that was applied: it is obsolete or incomplete."""
        ...


class MessageOrder(enum.Enum):
    """The position of a message in its publisher's sequence."""

    NEXT = "next"
    REPEATED = "repeated"
    GAP = "gap"
    """Messages are missing between the last one and this one."""
    RESTARTED = "restarted"
    """The publisher has restarted; its earlier messages are obsolete."""


class MessageSequence:
    """The numbering of one publisher's messages of one topic.

    Publishers number from 0 and start again when they restart. A number that is too low belongs to
    a repeated message or to a restarted publisher; the sender's clock distinguishes them, because a
    repeated message is not newer than the last one. A message is applied at most once.
    """

    def __init__(self) -> None:
        self.expected = 0
        """The number of the next message."""
        self.has_applied = False
        """Whether any message was applied, at least in part."""
        self._sent_s = float("-inf")

    def classify(self, number: int, sent_s: float | None) -> MessageOrder:
        """Return the position of message `number`; `advance` follows once it is applied.

        `sent_s` is None if the message cannot be decoded; it is then no evidence of a restart.
        """
        if number == self.expected:
            return MessageOrder.NEXT
        if number > self.expected:
            return MessageOrder.GAP
        is_later = sent_s is not None and sent_s > self._sent_s
        return MessageOrder.RESTARTED if is_later else MessageOrder.REPEATED

    def advance(self, number: int, sent_s: float | None) -> None:
        """Note that message `number` was applied."""
        self.expected = number + 1
        if sent_s is not None:
            self._sent_s = sent_s

    def reset(self) -> None:
        """Start again from 0 after the publisher has restarted."""
        self.expected = 0
        self.has_applied = False
        self._sent_s = float("-inf")


class EventStream:
    """A subscription to one publisher, until it is cancelled. Belongs to the event loop."""

    def __init__(
        self,
        endpoint: str,
        sink: EventSink,
        *,
        replay: str | None = None,
        context: zmq.asyncio.Context | None = None,
        counts: EventCounts | None = None,
    ) -> None:
        """`endpoint` and `replay` are ZeroMQ endpoints such as `tcp://10.0.0.7:5557`.

        `counts` continues the counters of an earlier stream. Streams that share a `context` share
        its one thread; without one, each has its own.
        """
        self._endpoint = endpoint
        self._shared = context
        self._replay = replay
        self._sink = sink
        self._sequences: dict[bytes, MessageSequence] = {}
        self.counts = EventCounts() if counts is None else counts

    async def run(self, name: str) -> None:
        """Follow the publisher until cancelled, and restart after failures.

        `name` is the stream's name in the log, which reports only the first failure.
        """
        pause_s, is_logged = RETRY_S, False
        while True:
            try:
                await self.follow()
            except Exception as error:
                self._sink.reset()
                if not is_logged:
                    bug = None if isinstance(error, zmq.ZMQError) else error
                    text = "%s: its events cannot be followed: %s; retrying"
                    _log.warning(text, name, error, exc_info=bug)
                is_logged = True
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _RETRY_MAX_S)

    async def follow(self) -> None:
        """Follow the publisher until cancelled. After a failure, reset the sink and call it again.

        Raises zmq.ZMQError at once if the endpoint is invalid.
        """
        self._sequences.clear()
        if self._shared is not None:
            await self._follow(self._shared)
            return
        context = zmq.asyncio.Context()
        try:
            await self._follow(context)
        finally:
            context.term()

    async def _follow(self, context: zmq.asyncio.Context) -> None:
        socket = context.socket(zmq.SUB)
        monitor: zmq.asyncio.Socket | None = None
        watching: asyncio.Task[None] | None = None
        try:
            socket.setsockopt(zmq.RCVHWM, _QUEUE_MESSAGES)
            socket.setsockopt(zmq.MAXMSGSIZE, PAYLOAD_MAX)
            socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
            socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
            socket.setsockopt(zmq.LINGER, 0)
            socket.subscribe(b"")
            monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            watching = asyncio.create_task(self._watch(monitor))
            socket.connect(self._endpoint)
            while True:
                await self._receive(context, await socket.recv_multipart())
                await self._drain(context, socket)
        finally:
            if watching is not None:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
            if monitor is not None:
                socket.disable_monitor()
                monitor.close(0)
            socket.close(0)

    async def _drain(self, context: zmq.asyncio.Context, socket: zmq.asyncio.Socket) -> None:
        """Take the messages that have already arrived, at a third of the cost of awaiting each."""
        plain: zmq.Socket[bytes] = zmq.Socket.shadow(socket.underlying)
        for _ in range(_DRAINED):
            try:
                parts: list[bytes] = plain.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            await self._receive(context, parts)
        await asyncio.sleep(0)

    async def _watch(self, monitor: zmq.asyncio.Socket) -> None:
        """Reset the sink when the connection breaks: the publisher may have restarted."""
        while True:
            event = parse_monitor_message(await monitor.recv_multipart())
            if event["event"] == zmq.EVENT_DISCONNECTED and self._sequences:
                _log.info("kv events of %s: the connection broke", self._endpoint)
                self._sequences.clear()
                self.counts.resyncs += 1
                self._sink.reset()

    # -- one message -----------------------------------------------------------------------

    async def _receive(self, context: zmq.asyncio.Context, parts: Sequence[bytes]) -> None:
        self.counts.messages += 1
        if len(parts) != 3 or len(parts[1]) != _NUMBER_BYTES:
            self.counts.bad_messages += 1
            return
        topic, number = parts[0], int.from_bytes(parts[1], "big")
        if not self._sink.accepts(topic):
            self.counts.foreign += 1
            return
        batch = await self._read(parts[2])
        if topic not in self._sequences and len(self._sequences) >= _TOPICS_MAX:
            self._sequences.pop(next(iter(self._sequences)))
        sequence = self._sequences.setdefault(topic, MessageSequence())
        verdict = sequence.classify(number, batch.sent_s)
        if verdict is MessageOrder.REPEATED:
            self.counts.repeated += 1
            return
        if verdict is MessageOrder.RESTARTED:
            self.counts.restarts += 1
            self._sink.reset()
            sequence.reset()
            verdict = sequence.classify(number, batch.sent_s)
        if verdict is MessageOrder.GAP:
            await self._fill_gap(context, topic, sequence, number)
        if number >= sequence.expected:
            await self._apply(topic, sequence, number, batch)

    async def _read(self, payload: bytes) -> Batch:
        """Return the events of a message.

        A message that cannot be decoded has no events. Its number counts nevertheless; otherwise
        every later message would follow a gap.
        """
        if len(payload) > _INLINE_MAX:
            batch = await asyncio.to_thread(decode, payload)
        else:
            batch = decode(payload)
        if batch is None:
            self.counts.bad_messages += 1
            return Batch(None, [])
        return batch

    async def _apply(
        self, topic: bytes, sequence: MessageSequence, number: int, batch: Batch
    ) -> None:
        if self._is_obsolete(topic, sequence):
            return
        sequence.has_applied = True
        if number == 0 and batch.sent_s is not None:
            self._sink.begin()
        self.counts.bad_events += batch.bad_events
        blocks = 0
        piece: list[KVEvent] = []
        for event in (part for whole in batch.events for part in split_event(whole, SLICE_BLOCKS)):
            size = 1 if isinstance(event, DeviceCleared) else len(event.names)
            if piece and blocks + max(1, size) > SLICE_BLOCKS:
                self._sink.apply(topic, piece)
                blocks, piece = 0, []
                await asyncio.sleep(0)
                if self._is_obsolete(topic, sequence):
                    return
            piece.append(event)
            blocks += max(1, size)
            self.counts.blocks += size
        self._sink.apply(topic, piece)
        sequence.advance(number, batch.sent_s)

    def _is_obsolete(self, topic: bytes, sequence: MessageSequence) -> bool:
        """Return whether the connection broke meanwhile, so that `sequence` may be obsolete."""
        return self._sequences.get(topic) is not sequence

    # -- gaps ------------------------------------------------------------------------------

    async def _fill_gap(
        self, context: zmq.asyncio.Context, topic: bytes, sequence: MessageSequence, number: int
    ) -> None:
        """Replay the messages missing before `number`; reset the sink if that fails."""
        self.counts.gaps += 1
        if self._replay is not None:
            try:
                async with asyncio.timeout(REPLAY_S):
                    socket = context.socket(zmq.DEALER)
                    await self._request_replay(socket, self._replay, topic, sequence)
            except (TimeoutError, zmq.ZMQError) as error:
                _log.warning("kv events of %s: no replay: %r", self._endpoint, error)
        if self._is_obsolete(topic, sequence):
            return
        if sequence.expected >= number:
            self.counts.replays += 1
        elif sequence.has_applied:  # also if only a replay that ended early applied anything
            self.counts.resyncs += 1
            self._sink.reset()
            _log.warning(
                "kv events of %s: messages %d to %d are lost; its known blocks were removed and "
                "are learned again",
                self._endpoint,
                sequence.expected,
                number - 1,
            )

    async def _request_replay(
        self, socket: zmq.asyncio.Socket, endpoint: str, topic: bytes, sequence: MessageSequence
    ) -> None:
        """Apply the messages that the replay socket still has, from the expected number on."""
        try:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.MAXMSGSIZE, PAYLOAD_MAX)
            socket.connect(endpoint)
            first = sequence.expected
            await socket.send_multipart([b"", first.to_bytes(_NUMBER_BYTES, "big")])
            while True:
                parts: list[Any] = await socket.recv_multipart()
                # Delimiter, topic (omitted by older engines), number, payload.
                if len(parts) < 3 or parts[-2] == _END or len(parts[-2]) != _NUMBER_BYTES:
                    return
                if len(parts) > 3 and parts[1] != topic:
                    continue
                number = int.from_bytes(parts[-2], "big")
                if self._is_obsolete(topic, sequence):
                    return
                if number < sequence.expected:
                    continue
                if number > sequence.expected > 0:
                    # The publisher's replay buffer begins later.
                    self._sink.reset()
                    self.counts.resyncs += 1
                batch = await self._read(parts[-1])
                await asyncio.sleep(0)  # recv_multipart does not yield if a message is there
                await self._apply(topic, sequence, number, batch)
        finally:
            socket.close(0)
