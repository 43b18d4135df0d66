"""Subscriptions to evictors, with the evictor's own publisher."""

import asyncio
from functools import partial

import pytest
import zmq.asyncio

from kvtier.errors import InvalidSettings
from kvtier.evictor.events import EventAnnouncer, Publisher, block_of
from kvtier.evictor.layouts import StoreTree
from kvtier.evictor.options import EvictorOptions
from kvtier.index.fleet.events import BlocksStored, block_name
from kvtier.index.fleet.precise import PreciseIndex
from kvtier.index.fleet.prompt import TokenPrompt
from kvtier.router.learn.evictors import Evictors, SharedSink, parse_evictors
from kvtier.testing.samples import sample_space
from kvtier.tiers.shared.format import space_folder
from tests.evictor.scenes import Scene
from tests.router.route.routers import run, until

TOKENS = list(range(64))
HASHES = [bytes([number]) * 32 for number in range(1, 5)]


def test_blocks_removed_by_evictors_leave_shared_storage() -> None:
    space = sample_space()
    publishers = [Publisher("tcp://127.0.0.1:*") for _ in range(2)]
    scene = Scene()
    announcers = [
        EventAnnouncer(scene.store, one, EvictorOptions(), "shared", clock=scene.clock, env={})
        for one in publishers
    ]
    tree = StoreTree(space_folder(space), is_foreign=False)

    async def test() -> None:
        index = PreciseIndex()
        for replica in ("a", "b"):
            index.add(replica, "m")
        event = BlocksStored(
            names=[block_name(one) for one in HASHES],
            parent=None,
            token_ids=TOKENS,
            block_tokens=16,
            tier="shared",
            is_shared=True,
        )
        index.apply("a", [event])
        index.apply("b", [event])

        def held(tokens: int) -> bool:
            found = index.match(TokenPrompt(TOKENS, "m"), ["a", "b"])
            return [match.tokens.get("shared", 0) for match in found] == [tokens, tokens]

        assert held(64)
        sink = SharedSink([index], lambda name: ("m",) if name == announced else ())
        evictors = Evictors([one.endpoint for one in publishers], sink)
        context = zmq.asyncio.Context()
        evictors.open(context)
        for number, announcer in enumerate(announcers):
            counts = evictors.counts[publishers[number].endpoint]
            while not counts.messages:  # until the subscription is connected
                publishers[number].send(b"hello", b"")
                await asyncio.sleep(0.01)
            announcer.removed(tree, [block_of(HASHES[3 - number], 0)])
            announcer.flush()
            await until(partial(held, 48 - 16 * number), "the removal")
            assert counts.blocks == 1
            assert counts.foreign >= 1, "hello is not a model"
        await evictors.close()
        await evictors.close()
        context.term()

    announced = announcers[0]._topic(tree).split(b"@")[2].decode()
    try:
        run(test())
    finally:
        for publisher in publishers:
            publisher.close()


def test_unreachable_evictor_is_logged_and_retried(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        context = zmq.asyncio.Context()
        evictors = Evictors(["tcp://127.0.0.1:1", "nonsense"], SharedSink([], lambda name: ()))
        evictors.open(context)
        await until(lambda: "nonsense" in caplog.text, "a warning")
        await evictors.close()
        context.term()

    run(test())


def test_parse_evictors_splits_commas_and_removes_duplicates() -> None:
    texts = ("tcp://a:5559, tcp://[fd00::1]:5559,", "tcp://a:5559", "ipc:///run/kv-events")
    assert parse_evictors(texts, "--evictor-events") == (
        "tcp://a:5559",
        "tcp://[fd00::1]:5559",
        "ipc:///run/kv-events",
    )
    assert parse_evictors(("",), "--evictor-events") == ()


@pytest.mark.parametrize(
    "text", ["a:5559", "tcp://a", "tcp://*:0", "tcp://a:99999", "connect:tcp://a:1", "http://a:1"]
)
def test_parse_evictors_rejects_invalid_endpoint(text: str) -> None:
    with pytest.raises(InvalidSettings, match=r"--evictor-events: .*write tcp://evictor:5559"):
        parse_evictors((text,), "--evictor-events")
