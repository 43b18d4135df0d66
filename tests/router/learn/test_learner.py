import asyncio
import datetime as dt
import gzip
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import zmq
import zmq.asyncio
from aiohttp import web

from kvtier.evictor.events import Publisher, block_of, encode_removed
from kvtier.index.fleet.base import DEVICE
from kvtier.index.fleet.estimated import EstimatedIndex
from kvtier.index.fleet.events import BlocksStored, KVEvent, block_name
from kvtier.index.fleet.precise import PreciseIndex
from kvtier.index.fleet.prompt import TokenPrompt
from kvtier.router.epp.certificates import self_signed
from kvtier.router.fleet.members import Fleet, ModelCard
from kvtier.router.fleet.replicas import Replica
from kvtier.router.learn import events
from kvtier.router.learn.learner import Learner
from kvtier.router.learn.prompts import PromptBuilder
from kvtier.router.learn.sources import EVENTS, EngineSource
from tests.router.replicas import replicas
from tests.router.route.routers import run, until

METRICS = """\
vllm:num_requests_waiting{model_name="m"} 7
vllm:num_requests_running{model_name="m"} 3
vllm:kv_cache_usage_perc{model_name="m"} 0.25
vllm:cache_config_info{block_size="32",num_gpu_blocks="4"} 1
"""


@asynccontextmanager
async def learning(
    fleet: Fleet, index: EstimatedIndex, precise: PreciseIndex
) -> AsyncIterator[Learner]:
    learner = Learner([index], [precise], tuned=[index], scrape_s=0.01)
    fleet.add_listener(learner)
    await learner.open()
    yield learner
    await learner.close()


def test_learner_updates_endpoint_and_index_until_replica_is_removed() -> None:
    async def test() -> None:
        fleet, index = Fleet(), EstimatedIndex(block_tokens=16)
        async with replicas() as (a,), learning(fleet, index, PreciseIndex()):
            a.metrics = METRICS
            fleet.update([Replica(name="a", url=a.url)])
            endpoint = fleet.members[0].endpoint
            await until(lambda: endpoint.load.waiting == 7, "the first scrape")
            assert (endpoint.load.running, endpoint.load.kv_usage) == (3, 0.25)
            prompt = TokenPrompt(list(range(320)), "m")
            index.routed(prompt, "a")
            (match,) = index.match(prompt, ["a"])
            assert match.best_tokens == 128, "four blocks of 32 tokens fit in the device"
            a.metrics = METRICS.replace(" 7", " 9")
            await until(lambda: endpoint.load.waiting == 9, "a later scrape")
            fleet.update([])
            assert index.match(prompt, ["a"])[0].best_tokens == 0

    run(test())


def test_learner_removes_blocks_of_restarted_replica() -> None:
    async def test() -> None:
        fleet, index = Fleet(), EstimatedIndex(block_tokens=16)
        async with replicas() as (a,), learning(fleet, index, PreciseIndex()):
            a.metrics = f"{METRICS}process_start_time_seconds 5\n"
            fleet.update([Replica(name="a", url=a.url)])
            endpoint = fleet.members[0].endpoint
            await until(lambda: endpoint.load.waiting == 7, "the first scrape")
            prompt = TokenPrompt(list(range(320)), "m")
            index.routed(prompt, "a")
            a.metrics = METRICS.replace(" 7", " 8")
            await until(lambda: endpoint.load.waiting == 8, "a scrape without the start time")
            assert index.match(prompt, ["a"])[0].best_tokens == 128
            a.metrics = f"{METRICS.replace(' 7', ' 9')}process_start_time_seconds 6\n"
            await until(lambda: endpoint.load.waiting == 9, "a scrape of the restarted process")
            assert index.match(prompt, ["a"])[0].best_tokens == 0
            index.routed(prompt, "a")
            assert index.match(prompt, ["a"])[0].best_tokens == 128

    run(test())


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:{}", "{}"])
def test_learner_applies_events_to_precise_index(address: str) -> None:
    async def test() -> None:
        context = zmq.asyncio.Context()
        publisher = context.socket(zmq.PUB)
        port = publisher.bind_to_random_port("tcp://127.0.0.1")
        fleet, precise = Fleet(), PreciseIndex()
        labels = {EVENTS: address.format(port)}
        async with replicas() as (a,), learning(fleet, EstimatedIndex(), precise) as learner:
            fleet.update([Replica(name="a", url=a.url, labels=labels)])
            (member,) = fleet.members
            assert learner.engines.get("m") is None
            fleet.mark_healthy(member, [ModelCard("m", b"{}"), ModelCard("lora", b"{}")], 0.0)
            assert isinstance(learner.engines["m"], EngineSource)
            assert learner.engines["m"] is learner.engines["lora"]
            assert set(learner.engines) == {"m", "lora"}
            assert len(learner.engines) == 2
            with pytest.raises(KeyError):
                learner.engines["other"]
            number = 0
            tokens = list(range(32))
            stored = ["BlockStored", [1, 2], None, tokens, 16, None, "GPU"]
            prompt = TokenPrompt(tokens, "m")
            while not precise.match(prompt, ["a"])[0].tokens.get(DEVICE):
                payload = msgspec.msgpack.encode([1.0, [stored]])
                await publisher.send_multipart([b"kv@a@m", number.to_bytes(8, "big"), payload])
                number += 1
                await asyncio.sleep(0.02)
            fleet.update([])
            assert precise.match(prompt, ["a"])[0].best_tokens == 0
            assert learner.engines._sources == {}
        publisher.close(0)
        context.term()

    run(test())


def test_learner_logs_invalid_event_endpoint(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        fleet = Fleet()
        async with replicas() as (a,), learning(fleet, EstimatedIndex(), PreciseIndex()):
            a.metrics = METRICS
            labels = {EVENTS: "nonsense"}
            fleet.update([Replica(name="a", url=a.url, labels=labels, models=frozenset("m"))])
            (member,) = fleet.members
            await until(lambda: "nonsense" in caplog.text, "a warning")
            await until(lambda: member.endpoint.load.waiting == 7, "a scrape")

    run(test())


class Engine:
    """Publish one block of sixteen `token`s repeatedly."""

    def __init__(self, token: int) -> None:
        self.prompt = TokenPrompt([token] * 16, "m")
        self._event = ["BlockStored", [token], None, [token] * 16, 16, None, "GPU"]
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.PUB)
        self.port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self._number = 0

    async def send(self) -> None:
        payload = msgspec.msgpack.encode([1.0 + self._number, [self._event]])
        await self._socket.send_multipart([b"", self._number.to_bytes(8, "big"), payload])
        self._number += 1
        await asyncio.sleep(0.02)

    def close(self) -> None:
        self._socket.close(0)
        self._context.term()


def test_learner_follows_changed_event_labels_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events, "REPLAY_S", 0.1)

    async def test() -> None:
        first, second = Engine(1), Engine(2)
        fleet, index, precise = Fleet(), EstimatedIndex(block_tokens=16), PreciseIndex()
        async with replicas() as (a,), learning(fleet, index, precise) as learner:
            a.metrics = METRICS

            def label(**labels: str) -> None:
                named = {name.replace("_", "-"): text for name, text in labels.items()}
                models = frozenset("m")
                fleet.update([Replica(name="a", url=a.url, models=models, labels=named)])

            def held(engine: Engine) -> int:
                return precise.match(engine.prompt, ["a"])[0].best_tokens

            label(zone="eu")
            (member,) = fleet.members
            await until(lambda: member.endpoint.load.waiting == 7, "a scrape")
            estimated = TokenPrompt(list(range(64)), "m")
            index.routed(estimated, "a")
            label(zone="eu", kv_events=str(first.port))
            while not held(first):
                await first.send()
            was = list(learner._tasks[member].events)
            label(zone="us", kv_events=str(first.port))
            assert learner._tasks[member].events == was
            assert held(first), "the first stream continues"
            label(zone="us", kv_events=str(second.port))
            assert not held(first), "blocks of a stream that is no longer followed are removed"
            while not held(second):
                await second.send()
            await first.send()
            assert not held(first)
            label(kv_events=str(second.port), kv_events_replay="1")
            assert learner._tasks[member].events != was
            while not held(second):
                await second.send()
            label()
            assert not held(second)
            assert learner._tasks[member].events == []
            assert index.match(estimated, ["a"])[0].best_tokens == 64, (
                "the estimate of the replica stays"
            )
            was_scraped = learner.meter.scrapes["a"].scrapes
            await until(lambda: learner.meter.scrapes["a"].scrapes > was_scraped, "a scrape")
        first.close()
        second.close()

    run(test())


def test_learner_restarts_failed_stream(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(events, "RETRY_S", 0.01)

    class Failing(PreciseIndex):
        fails = False

        def apply(self, replica: str, events: Iterable[KVEvent]) -> None:
            super().apply(replica, events)
            if self.fails:
                raise RuntimeError("a bug")

    async def test() -> None:
        engine = Engine(1)
        fleet, precise = Fleet(), Failing()
        labels = {EVENTS: str(engine.port)}
        async with replicas() as (a,), learning(fleet, EstimatedIndex(), precise):
            fleet.update([Replica(name="a", url=a.url, labels=labels, models=frozenset("m"))])

            def held() -> int:
                return precise.match(engine.prompt, ["a"])[0].best_tokens

            while not held():
                await engine.send()
            precise.fails = True
            while "a bug" not in caplog.text:
                await engine.send()
            assert not held()
            precise.fails = False
            while not held():
                await engine.send()
        engine.close()

    run(test())


def test_learner_scrapes_https_replica_with_private_ca(tmp_path: Path) -> None:
    async def test() -> None:
        pair = self_signed(dt.datetime.now(dt.UTC))
        (tmp_path / "key.pem").write_bytes(pair.key)
        (tmp_path / "cert.pem").write_bytes(pair.certificate)
        shown = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        shown.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")

        async def metrics(request: web.Request) -> web.Response:
            return web.Response(text=METRICS)

        app = web.Application()
        app.router.add_get("/metrics", metrics)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=shown).start()
        url = f"https://localhost:{runner.addresses[0][1]}"
        trusting = ssl.create_default_context(cafile=tmp_path / "cert.pem")
        for tls, waiting in ((trusting, 7), (None, 0)):
            fleet, learner = Fleet(), Learner([], [], scrape_s=0.01, tls=tls)
            fleet.add_listener(learner)
            await learner.open()
            fleet.update([Replica(name="a", url=url)])
            await until(lambda one=learner: one.meter.scrapes, "the first request")  # type: ignore[misc]
            counts = learner.meter.scrapes["a"]
            await until(lambda of=counts: of.scrapes >= 2, "a response")  # type: ignore[misc]
            assert fleet.members[0].endpoint.load.waiting == waiting
            await learner.close()
        await runner.cleanup()

    run(test())


def card(name: str, root: str, parent: str | None = None) -> ModelCard:
    return ModelCard(name, msgspec.json.encode({"id": name, "root": root, "parent": parent}))


ALIASES = (card("main", "/m"), card("alias", "/m"), card("sql", "/a/sql", "main"))


@pytest.mark.parametrize("models", [frozenset(), frozenset({"alias", "main", "sql"})])
def test_prompts_by_any_alias_match_blocks_of_model(
    models: frozenset[str],
) -> None:
    async def test() -> None:
        context = zmq.asyncio.Context()
        publisher = context.socket(zmq.PUB)
        port = publisher.bind_to_random_port("tcp://127.0.0.1")
        fleet, precise = Fleet(), PreciseIndex()
        async with (
            replicas("main", "alias", "sql") as (a,),
            learning(fleet, EstimatedIndex(), precise) as learner,
        ):
            a.described = {one.id: msgspec.json.decode(one.text) for one in ALIASES}
            labels = {EVENTS: str(port)}
            fleet.update([Replica(name="a", url=a.url, labels=labels, models=models)])
            (member,) = fleet.members
            fleet.mark_healthy(member, () if models else ALIASES, 0.0)
            prompts = PromptBuilder(canonical=learner.aliases.canonical)

            async def held(model: str, tokens: list[int]) -> int:
                prompt = await prompts.of({"prompt": tokens}, model)
                return precise.match(prompt, ["a"])[0].tokens.get(DEVICE, 0)

            tokens = list(range(32))
            base = {"block_hashes": [1, 2], "token_ids": tokens}
            tuned = {"block_hashes": [3], "token_ids": list(range(16)), "lora_name": "sql"}
            tuned["extra_keys"] = [["sql"]]
            common = {"type": "BlockStored", "parent_block_hash": None, "block_size": 16}
            number = 0
            while await held("sql", tokens) < 16 or await held("main", tokens) < 32:
                events = [{**common, **base}, {**common, **tuned}]
                payload = msgspec.msgpack.encode([1.0 + number, events])
                await publisher.send_multipart([b"", number.to_bytes(8, "big"), payload])
                number += 1
                await asyncio.sleep(0.02)
            assert await held("alias", tokens) == 32
            assert await held("sql", tokens) == 16
            assert await held("other", tokens) == 0
        publisher.close(0)
        context.term()

    run(test())


def test_learner_relearns_replica_whose_model_name_changes() -> None:
    async def test() -> None:
        context = zmq.asyncio.Context()
        publisher = context.socket(zmq.PUB)
        port = publisher.bind_to_random_port("tcp://127.0.0.1")
        fleet, precise = Fleet(), PreciseIndex()
        async with (
            replicas(count=2) as (a, b),
            learning(fleet, EstimatedIndex(), precise) as learner,
        ):
            one = Replica(name="a", url=a.url, labels={EVENTS: str(port)})
            fleet.update([one])
            fleet.mark_healthy(fleet.members[0], (card("main", "/m"),), 0.0)
            event = ["BlockStored", [1, 2], None, list(range(32)), 16, None, "GPU"]
            number = 0

            async def known(model: str) -> None:
                nonlocal number
                prompt = TokenPrompt(list(range(32)), model)
                while not precise.match(prompt, ["a"])[0].best_tokens:
                    payload = msgspec.msgpack.encode([1.0 + number, [event]])
                    await publisher.send_multipart([b"", number.to_bytes(8, "big"), payload])
                    number += 1
                    await asyncio.sleep(0.02)

            await known("main")
            fleet.update([one, Replica(name="b", url=b.url)])
            fleet.mark_healthy(fleet.members[1], (card("main", "/m"), card("first", "/m")), 0.0)
            await until(lambda: learner.aliases.canonical("main") == "first", "the new name")
            await known("first")
            assert precise.match(TokenPrompt(list(range(32)), "main"), ["a"])[0].best_tokens == 0
        publisher.close(0)
        context.term()

    run(test())


def test_learner_keeps_blocks_of_moved_replica_when_old_one_is_removed() -> None:
    async def test() -> None:
        fleet, index = Fleet(), EstimatedIndex(block_tokens=16)
        async with (
            replicas(count=2) as (a, b),
            learning(fleet, index, PreciseIndex()) as learner,
        ):
            a.metrics, b.metrics = METRICS, METRICS.replace(" 7", " 8")
            fleet.update([Replica(name="a", url=a.url)])
            (old,) = fleet.members
            await until(lambda: old.endpoint.load.waiting == 7, "a scrape")
            prompt = TokenPrompt(list(range(320)), "m")
            index.routed(prompt, "a")
            stay = fleet.add_load(old.endpoint, 10, 10)
            fleet.update([Replica(name="a", url=b.url)])
            (new,) = fleet.members
            assert index.match(prompt, ["a"])[0].best_tokens == 0, (
                "the new replica starts with empty caches"
            )
            await until(lambda: new.endpoint.load.waiting == 8, "a scrape of the new replica")
            index.routed(prompt, "a")
            stay.end()
            assert fleet.draining == ()
            assert index.match(prompt, ["a"])[0].best_tokens == 128
            assert set(learner.meter.scrapes) == {"a"}

    run(test())


def test_learner_removes_evicted_blocks_of_every_replica() -> None:
    published = Publisher("tcp://127.0.0.1:*")
    hashes = [bytes([number]) * 32 for number in (1, 2)]
    stored = BlocksStored(
        names=[block_name(one) for one in hashes],
        parent=None,
        token_ids=list(range(32)),
        block_tokens=16,
        tier="shared",
        is_shared=True,
    )

    async def test() -> None:
        fleet, precise = Fleet(), PreciseIndex()
        learner = Learner([], [precise], evictors=[published.endpoint], scrape_s=0.01)
        fleet.add_listener(learner)
        await learner.open()
        async with replicas() as (a,):
            fleet.update(
                [Replica(name="a", url=a.url), Replica(name="b", url="http://127.0.0.1:1")]
            )
            for member, root in zip(fleet.members, ("/models/m", "/models/other"), strict=True):
                fleet.mark_healthy(member, (card(f"{member.replica.name}-model", root),), 0.0)
                precise.add(member.replica.name, f"{member.replica.name}-model")
                precise.apply(member.replica.name, [stored])
            await until(lambda: learner.aliases.models("/models/other"), "the replicas' models")

            def held(name: str) -> int:
                prompt = TokenPrompt(list(range(32)), f"{name}-model")
                return precise.match(prompt, [name])[0].best_tokens

            assert (held("a"), held("b")) == (32, 32)
            payload = encode_removed([block_of(hashes[1], 0)], "shared", 1.0, whole_hashes=False)
            while held("a") == 32:
                published.send(b"kv@tree@/models/m", payload)
                await asyncio.sleep(0.01)
            assert (held("a"), held("b")) == (16, 32)
        await learner.close()

    try:
        run(test())
    finally:
        published.close()


def test_learner_does_not_decompress_responses() -> None:
    async def compressed(request: web.Request) -> web.Response:
        asked.append(request.headers["Accept-Encoding"])
        body = gzip.compress(METRICS.encode())
        return web.Response(body=body, headers={"Content-Encoding": "gzip"})

    asked: list[str] = []

    async def test() -> None:
        app = web.Application()
        app.router.add_get("/metrics", compressed)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        fleet = Fleet()
        async with learning(fleet, EstimatedIndex(), PreciseIndex()) as learner:
            fleet.update([Replica(name="a", url=f"http://127.0.0.1:{runner.addresses[0][1]}")])
            scrapes = learner.meter.scrapes
            await until(lambda: "a" in scrapes and scrapes["a"].scrapes >= 2, "two scrapes")
            assert fleet.members[0].endpoint.load.waiting == 0
        assert asked[0] == "identity"
        await runner.cleanup()

    run(test())
