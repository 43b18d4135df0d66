import asyncio
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count

import msgspec
import pytest
import zmq
import zmq.asyncio

from kvtier.index.fleet.events import DeviceCleared, KVEvent
from kvtier.index.fleet.precise import PreciseIndex
from kvtier.index.fleet.prompt import TokenPrompt
from kvtier.router.learn import events as module
from kvtier.router.learn.events import EventStream, MessageSequence
from kvtier.router.learn.evictors import SharedSink
from kvtier.router.learn.learner import ReplicaSink
from kvtier.router.learn.wire import Batch
from tests.router.learn.publisher import Publisher, stored


class Follower:
    """A stream, its index, and the task that runs it."""

    def __init__(self, publisher: Publisher) -> None:
        self.index = PreciseIndex()
        self.index.add("a", "m")
        sink = ReplicaSink(self.index, "a")
        self.stream = EventStream(publisher.endpoint, sink, replay=publisher.replay)

    def blocks(self, *names: int) -> int:
        tokens = [name for name in names for _ in range(16)]
        return self.index.match(TokenPrompt(tokens, "m"), ["a"])[0].best_tokens // 16

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not holds():
                await asyncio.sleep(0.01)

    async def seen(self, messages: int) -> None:
        await self.until(lambda: self.stream.counts.messages >= messages)


@asynccontextmanager
async def following(publisher: Publisher):
    """Yield a follower whose subscription has reached the publisher."""
    follower = Follower(publisher)
    task = asyncio.create_task(follower.stream.follow())
    try:
        await connected(publisher, follower)
        yield follower
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        publisher.close()


async def connected(publisher: Publisher, follower: Follower) -> None:
    """Send a harmless message until it arrives, then reset the counters."""
    follower.stream.counts = module.EventCounts()
    for _ in count():
        await publisher.pub.send_multipart([b"hello"])
        await asyncio.sleep(0.01)
        if follower.stream.counts.messages:
            break
    await asyncio.sleep(0.05)
    follower.stream.counts = module.EventCounts()


def test_events_are_applied_in_order(tmp_path) -> None:
    async def run() -> None:
        publisher = Publisher(tmp_path)
        async with following(publisher) as follower:
            await publisher.send(stored(1, 2))
            await publisher.send(stored(3, parent=2))
            await publisher.send({"type": "BlockRemoved", "block_hashes": [3], "medium": "GPU"})
            await publisher.send(stored(4, parent=2))
            await follower.seen(4)
            assert (follower.blocks(1, 2, 4), follower.blocks(1, 2, 3)) == (3, 2)
            assert follower.stream.counts == module.EventCounts(messages=4, blocks=5)

    asyncio.run(run())


def test_gap_is_filled_by_replay(tmp_path) -> None:
    async def run() -> None:
        publisher = Publisher(tmp_path, b"kv@a@m", has_replay=True)
        async with following(publisher) as follower:
            answering = asyncio.create_task(publisher.answer())
            await publisher.send(stored(1))
            await publisher.send(stored(2, parent=1), lost=True)
            await publisher.send(stored(3, parent=2), lost=True)
            await publisher.send(stored(4, parent=3))
            await follower.until(lambda: follower.blocks(1, 2, 3, 4) == 4)
            await publisher.send(stored(5, parent=4))
            await follower.seen(3)
            assert follower.blocks(1, 2, 3, 4, 5) == 5
            assert publisher.asked == [1]
            counts = follower.stream.counts
            assert (counts.gaps, counts.replays, counts.resyncs) == (1, 1, 0)
            assert counts.blocks == 5
            answering.cancel()

    asyncio.run(run())


def test_late_stream_replays_earlier_messages(tmp_path) -> None:
    async def run() -> None:
        publisher = Publisher(tmp_path, has_replay=True)
        await publisher.send(stored(1))
        await publisher.send(stored(2, parent=1))
        async with following(publisher) as follower:
            answering = asyncio.create_task(publisher.answer())
            await publisher.send(stored(3, parent=2))
            await follower.until(lambda: follower.blocks(1, 2, 3) == 3)
            assert publisher.asked == [0]
            answering.cancel()

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["no socket", "no answer", "no memory", "no end"])
def test_gap_without_replay_resets_sink(tmp_path, monkeypatch, kind) -> None:
    monkeypatch.setattr(module, "REPLAY_S", 0.3)

    async def run() -> None:
        publisher = Publisher(tmp_path, has_replay=kind != "no socket")
        async with following(publisher) as follower:
            answers = {"no memory": {"begins": 3}, "no end": {"ends": False, "begins": 9}}
            if kind in answers:
                answering = asyncio.create_task(publisher.answer(**answers[kind]))
            await publisher.send(stored(1))
            await publisher.send(stored(2, parent=1), lost=True)
            await publisher.send(stored(7), lost=True)
            await publisher.send(stored(8))
            await follower.until(lambda: follower.blocks(8) == 1)
            assert follower.blocks(1) == 0
            assert follower.stream.counts.resyncs == 1
            await publisher.send(stored(9, parent=8))
            await follower.until(lambda: follower.blocks(8, 9) == 2)
            assert follower.stream.counts.gaps == 1
            if kind in answers:
                answering.cancel()

    asyncio.run(run())


@pytest.mark.parametrize("ends", [True, False])
def test_incomplete_first_replay_resets_sink(tmp_path, monkeypatch, ends) -> None:
    monkeypatch.setattr(module, "REPLAY_S", 0.3)

    async def run() -> None:
        publisher = Publisher(tmp_path, has_replay=True)
        for name in range(1, 6):
            await publisher.send(stored(name))
        async with following(publisher) as follower:
            answering = asyncio.create_task(publisher.answer(ends=ends, upto=3))
            await publisher.send(stored(6))
            await follower.until(lambda: follower.blocks(6) == 1)
            assert publisher.asked == [0]
            assert follower.blocks(1) == 0
            counts = follower.stream.counts
            assert (counts.gaps, counts.replays, counts.resyncs) == (1, 0, 1)
            answering.cancel()

    asyncio.run(run())


def test_replay_that_times_out_in_first_message_resets_sink(monkeypatch) -> None:
    monkeypatch.setattr(module, "SLICE_BLOCKS", 1)
    monkeypatch.setattr(module, "REPLAY_S", 0.1)
    heard = Heard()

    class Slow(EventStream):
        async def _request_replay(self, socket, endpoint, topic, sequence) -> None:
            socket.close(0)
            endless = (DeviceCleared() for _ in count())
            await self._apply(topic, sequence, 0, Batch(1.0, endless))  # type: ignore[arg-type]

    async def run() -> None:
        context = zmq.asyncio.Context()
        stream = Slow("ipc:///nowhere", heard, replay="ipc:///nowhere")
        payload = msgspec.msgpack.encode([9.0, []])
        await stream._receive(context, [b"", (7).to_bytes(8, "big"), payload])
        assert stream.counts.resyncs == 1
        context.term()

    asyncio.run(run())
    assert heard.said[0] == "begin"
    assert heard.said[-2:] == ["reset", "0"]


def test_replay_with_gap_counts_from_after_gap(tmp_path) -> None:
    async def run() -> None:
        publisher = Publisher(tmp_path, has_replay=True)
        for name in range(1, 6):
            await publisher.send(stored(name))
        async with following(publisher) as follower:
            answering = asyncio.create_task(publisher.answer(leaves_out={2}))
            await publisher.send(stored(6))
            await follower.until(lambda: follower.blocks(6) == 1)
            assert [follower.blocks(name) for name in range(1, 6)] == [0, 0, 0, 1, 1]
            assert follower.stream.counts.resyncs == 1
            answering.cancel()

    asyncio.run(run())


class Heard:
    """A sink that records its calls, and the number of events for `apply`."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def accepts(self, topic: bytes) -> bool:
        return True

    def apply(self, topic: bytes, events: Sequence[KVEvent]) -> None:
        self.said.append(str(len(events)))

    def begin(self) -> None:
        self.said.append("begin")

    def reset(self) -> None:
        self.said.append("reset")


async def heard_of(*messages: tuple[int, bytes]) -> list[str]:
    heard = Heard()
    stream = EventStream("ipc:///nowhere", heard)
    context = zmq.asyncio.Context()
    for number, payload in messages:
        await stream._receive(context, [b"", number.to_bytes(8, "big"), payload])
    context.term()
    return heard.said


def message(ts: float, *events: dict) -> bytes:
    return msgspec.msgpack.encode([ts, list(events)])


def test_sink_begins_with_first_message() -> None:
    async def run() -> None:
        one = stored(1)
        begun = [(0, message(1.0, one)), (1, message(2.0))]
        assert await heard_of(*begun) == ["begin", "1", "0"]
        assert await heard_of((4, message(5.0, one)), (5, message(6.0))) == ["1", "0"]
        gap = (3, message(4.0, one))
        assert await heard_of(*begun, gap, (4, message(5.0))) == [
            *("begin", "1", "0"),
            *("reset", "1", "0"),
        ]
        restarted = (0, message(9.0, one))
        assert await heard_of(*begun, gap, restarted, (1, message(10.0))) == [
            *("begin", "1", "0"),
            *("reset", "1"),
            *("reset", "begin", "1", "0"),
        ]
        unread = (0, b"\xc1")
        assert await heard_of(unread, (1, message(2.0, one))) == ["0", "1"]

    asyncio.run(run())


def test_sink_begins_with_replay_of_first_message(tmp_path) -> None:
    async def told(**answers: int) -> list[str]:
        publisher = Publisher(tmp_path, has_replay=True)
        for name in (1, 2):
            await publisher.send(stored(name))
        async with following(publisher) as follower:
            heard = follower.stream._sink = Heard()
            answering = asyncio.create_task(publisher.answer(**answers))
            await publisher.send(stored(3))
            await follower.until(lambda: len(heard.said) >= 3 - bool(answers))
            answering.cancel()
        return heard.said

    assert asyncio.run(told()) == ["begin", "1", "1", "1"]
    assert asyncio.run(told(begins=1)) == ["1", "1"]


def test_broken_connection_ends_replay(tmp_path) -> None:
    async def run() -> None:
        publisher = Publisher(tmp_path, has_replay=True)
        for name in range(1, 4):
            await publisher.send(stored(name))
        async with following(publisher) as follower:

            class Breaking(Heard):
                def apply(self, topic: bytes, events: Sequence[KVEvent]) -> None:
                    super().apply(topic, events)
                    follower.stream._sequences.clear()

            heard = follower.stream._sink = Breaking()
            answering = asyncio.create_task(publisher.answer())
            await publisher.send(stored(4))
            await follower.until(lambda: len(publisher.asked) == 1 and len(heard.said) == 2)
            await publisher.send(stored(5))
            await follower.until(lambda: len(publisher.asked) == 2)
            assert heard.said[:2] == ["begin", "1"]
            assert follower.stream.counts.replays == 0
            answering.cancel()

    asyncio.run(run())


def test_malformed_message_makes_no_repetition_a_restart() -> None:
    async def run() -> None:
        first, bad = (5, message(100.0)), (6, b"\xc1")
        assert await heard_of(first, bad, first, (7, message(102.0))) == ["0", "0", "0"]

    asyncio.run(run())


def test_large_message_is_decoded_on_thread_in_order() -> None:
    async def run() -> None:
        names = range(1, 10_000)
        large = message(1.0, *(stored(name, tokens=1) for name in names))
        assert len(large) > module._INLINE_MAX
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        beside = asyncio.create_task(others())
        said = await heard_of((0, large), (1, message(2.0)))
        beside.cancel()
        assert said[0] == "begin"
        assert sum(map(int, said[1:])) == len(names)
        assert turns > len(names) // module.SLICE_BLOCKS

    asyncio.run(run())


def test_events_without_blocks_yield_to_event_loop(monkeypatch) -> None:
    monkeypatch.setattr(module, "SLICE_BLOCKS", 2)
    empty = {"type": "BlockRemoved", "block_hashes": []}
    assert asyncio.run(heard_of((0, message(1.0, *[empty] * 5)))) == ["begin", "2", "2", "1"]


def test_failed_stream_resets_sink_and_restarts(monkeypatch, caplog) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.01)

    class Failing(Heard):
        """A sink that fails at the second message of the first two runs."""

        def apply(self, topic: bytes, events: Sequence[KVEvent]) -> None:
            super().apply(topic, events)
            if self.said.count("reset") < 2 and self.said[-2] != "begin":
                raise RuntimeError("a bug")

    class Scripted(EventStream):
        """A stream that receives the same two messages in each run."""

        async def _follow(self, context: zmq.asyncio.Context) -> None:
            for number in (0, 1):
                payload = message(1.0 + number, stored(1))
                await self._receive(context, [b"", number.to_bytes(8, "big"), payload])
            done.set()
            await asyncio.sleep(60)

    heard = Failing()
    done = asyncio.Event()

    async def run() -> None:
        keeping = asyncio.create_task(Scripted("ipc:///nowhere", heard).run("it"))
        async with asyncio.timeout(10):
            await done.wait()
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)

    asyncio.run(run())
    assert heard.said == [*("begin", "1", "1", "reset") * 2, "begin", "1", "1"]
    assert caplog.text.count("; retrying") == 1


def test_repeated_message_is_applied_once(tmp_path) -> None:
    async def run() -> None:
        publisher = Publisher(tmp_path)
        async with following(publisher) as follower:
            await publisher.send(stored(1))
            await publisher.send({"type": "AllBlocksCleared"})
            await publisher.send(stored(2))
            first = publisher.sent[1]
            await publisher.pub.send_multipart([b"", (1).to_bytes(8, "big"), first])
            await follower.seen(4)
            assert follower.blocks(2) == 1
            assert follower.stream.counts.repeated == 1

    asyncio.run(run())


def test_restarted_publisher_resets_sink(tmp_path) -> None:
    async def run() -> None:
        publisher = Publisher(tmp_path)
        async with following(publisher) as follower:
            for name in (1, 2, 3):
                await publisher.send(stored(name))
            await follower.until(lambda: follower.blocks(3) == 1)
            publisher.sent.clear()
            await publisher.send(stored(4), ts=100.0)
            await follower.until(lambda: follower.blocks(4) == 1)
            assert follower.blocks(1) == 0
            assert follower.stream.counts.restarts == 1

    asyncio.run(run())


def test_broken_connection_is_restored_and_resets_sink(tmp_path) -> None:
    async def run() -> None:
        publisher = Publisher(tmp_path)
        async with following(publisher) as follower:
            await publisher.send(stored(1))
            await follower.until(lambda: follower.blocks(1) == 1)
            publisher.close()
            await follower.until(lambda: follower.blocks(1) == 0)
            publisher.__init__(tmp_path)
            await connected(publisher, follower)
            await publisher.send(stored(2))
            await follower.until(lambda: follower.blocks(2) == 1)

    asyncio.run(run())


def test_malformed_messages_are_counted_and_skipped(tmp_path) -> None:
    async def run() -> None:
        publisher = Publisher(tmp_path)
        async with following(publisher) as follower:
            await publisher.pub.send_multipart([b"", b"short", b""])
            await publisher.pub.send_multipart([b"x"] * 7)
            await publisher.send(stored(1))
            await publisher.send_raw(b"\xc1 no msgpack")
            await publisher.send({"type": "Unheard"}, stored(2, parent=1), stored(3, tokens=0))
            await follower.seen(5)
            assert follower.blocks(1, 2) == 2
            counts = follower.stream.counts
            assert (counts.bad_messages, counts.bad_events, counts.gaps) == (3, 1, 0)

    asyncio.run(run())


def test_large_message_yields_to_event_loop(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "SLICE_BLOCKS", 2)
    turns = 0

    async def run() -> None:
        nonlocal turns
        publisher = Publisher(tmp_path)
        async with following(publisher) as follower:
            names = range(1, 40)
            await publisher.send(*(stored(name, parent=name - 1 or None) for name in names))
            while follower.blocks(*names) < 39:
                turns += follower.blocks(*names) > 0
                await asyncio.sleep(0)

    asyncio.run(run())
    assert turns > 5


def test_message_interrupted_by_broken_connection_is_abandoned(monkeypatch) -> None:
    monkeypatch.setattr(module, "SLICE_BLOCKS", 1)
    taken: list[KVEvent] = []

    class EventSink:
        def accepts(self, topic: bytes) -> bool:
            return True

        def apply(self, topic: bytes, events: Sequence[KVEvent]) -> None:
            taken.extend(events)
            stream._sequences.clear()

        def begin(self) -> None:
            pass

        def reset(self) -> None:
            taken.clear()

    stream = EventStream("ipc:///nowhere", EventSink())
    events: list[KVEvent] = [DeviceCleared() for _ in range(5)]
    sequence = stream._sequences[b""] = MessageSequence()
    asyncio.run(stream._apply(b"", sequence, 0, Batch(1.0, events)))
    assert len(taken) == 1
    asyncio.run(stream._apply(b"", sequence, 0, Batch(1.0, events)))
    assert len(taken) == 1


def test_stream_of_evictor_removes_shared_blocks(tmp_path) -> None:
    async def run() -> None:
        publisher = Publisher(tmp_path)
        async with following(publisher) as follower:
            shared = {
                **stored(1, 2),
                "medium": "STORAGE",
                "locality": "REMOTE",
                "ownership": "shared",
            }
            await publisher.send(shared)
            await follower.until(lambda: follower.blocks(1, 2) == 2)
            gone = {"type": "BlockRemoved", "block_hashes": [2], "medium": "STORAGE"}
            gone |= {"group_idx": 0, "locality": "REMOTE", "ownership": "shared"}
            called = {"org/m@1": ("m",), "other": ("n",)}
            follower.stream._sink = SharedSink([follower.index], lambda name: called.get(name, ()))
            for topic in (b"", b"kv@tree@unknown", b"kv@tree", b"kv@tree@other", b"kv@\xff@\xff"):
                publisher.topic = topic
                publisher.sent.clear()
                await publisher.send(gone)
            await follower.seen(6)
            assert follower.blocks(1, 2) == 2
            assert follower.stream.counts.foreign == 4
            publisher.topic = b"kv@tree@org/m@1"
            publisher.sent.clear()
            await publisher.send(gone)
            await follower.until(lambda: follower.blocks(1, 2) == 1)
            follower.stream._sink.reset()
            assert follower.blocks(1) == 1

    asyncio.run(run())


def test_stream_continues_counters_of_earlier_stream() -> None:
    counts = module.EventCounts(messages=7)
    stream = EventStream("ipc:///nowhere", ReplicaSink(PreciseIndex(), "a"), counts=counts)
    assert stream.counts is counts


def test_invalid_endpoint_raises_at_once() -> None:
    stream = EventStream("nonsense", ReplicaSink(PreciseIndex(), "a"))
    with pytest.raises(zmq.ZMQError):
        asyncio.run(stream.follow())


@pytest.mark.engine
def test_vllm_publisher_is_followed_and_replayed(tmp_path) -> None:
    kv_events = pytest.importorskip("vllm.distributed.kv_events")

    def batch(*names: int, parent: int | None) -> object:
        event = kv_events.BlockStored(
            block_hashes=list(names),
            parent_block_hash=parent,
            token_ids=[name for name in names for _ in range(16)],
            block_size=16,
            lora_id=None,
            medium=kv_events.MEDIUM_GPU,
            lora_name=None,
            extra_keys=[None for _ in names],
            group_idx=0,
        )
        gone = kv_events.BlockRemoved(block_hashes=[99], medium=kv_events.MEDIUM_CPU)
        return kv_events.KVEventBatch(ts=1.0, events=[event, gone])

    async def run() -> None:
        publisher = kv_events.ZmqEventPublisher(
            0,
            endpoint=f"ipc://{tmp_path}/events",
            replay_endpoint=f"ipc://{tmp_path}/replay",
            topic="kv@a@m",
        )
        index = PreciseIndex()
        index.add("a", "m")
        stream = EventStream(
            f"ipc://{tmp_path}/events", ReplicaSink(index, "a"), replay=f"ipc://{tmp_path}/replay"
        )
        publisher.publish(batch(1, 2, parent=None))
        while not publisher._buffer:  # sent before anyone subscribed, so only a replay delivers it
            await asyncio.sleep(0.01)
        task = asyncio.create_task(stream.follow())
        prompt = TokenPrompt([name for name in range(1, 5) for _ in range(16)], "m")
        parent = 2
        async with asyncio.timeout(30):
            # The index has the block shortly before the replay ends and is counted.
            while index.match(prompt, ["a"])[0].best_tokens < 64 or not stream.counts.replays:
                publisher.publish(batch(3, 4, parent=parent))
                await asyncio.sleep(0.2)
        assert (stream.counts.bad_messages, stream.counts.bad_events) == (0, 0)
        assert stream.counts.replays == 1
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        publisher.shutdown()

    asyncio.run(run())
