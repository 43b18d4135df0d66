"""The manager with vLLM's own types: the calls that vLLM makes, and their results."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

pytest.importorskip("vllm")

from vllm.v1.kv_offload.base import (
    GPULoadStoreSpec,
    LookupResult,
    Medium,
    OffloadKey,
    ReqContext,
    ScheduleEndContext,
    make_offload_key,
)
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from kvtier.admission.always import Always
from kvtier.cache.core import TieredCache
from kvtier.cache.residency import Residency
from kvtier.clock import VirtualClock
from kvtier.connectors.vllm.manager import KVTierManager
from kvtier.connectors.vllm.seals import Seals
from kvtier.connectors.vllm.stats import Reporter
from kvtier.connectors.vllm.worker import ArenaLoadStoreSpec
from kvtier.eviction.lru import Lru
from kvtier.memory.arena import Arena
from kvtier.testing.faults import Fault, FaultyTier
from kvtier.testing.memory_tier import MemoryTier
from kvtier.transfer.engine import TransferEngine

SLOT = 4096
TOKENS = 16
HIT, PENDING, MISS = LookupResult.HIT, LookupResult.HIT_PENDING, LookupResult.MISS


@dataclass
class Bench:
    """A manager, and the parts below it that tests use."""

    manager: KVTierManager
    cache: TieredCache
    engine: TransferEngine
    seals: Seals
    clock: VirtualClock
    tier: FaultyTier

    def request(self, name: str, blocks: int) -> tuple[ReqContext, list[OffloadKey]]:
        """Create a request as vLLM does, with the position at which each key ends."""
        context = ReqContext(req_id=name)
        keys = [make_offload_key(i.to_bytes(32, "big"), 0) for i in range(blocks)]
        for i, key in enumerate(keys):
            context.set_offload_key_position(key, (i + 1) * TOKENS)
        self.manager.on_new_request(context)
        return context, keys

    def store(self, context: ReqContext, keys: list[OffloadKey]) -> None:
        """Store as vLLM and a worker do; each slot is filled with the last byte of its key."""
        output = self.manager.prepare_store(keys, context)
        assert output is not None
        spec = output.store_spec
        assert isinstance(spec, ArenaLoadStoreSpec)
        for key, slot in zip(output.keys_to_store, spec.slots, strict=True):
            self.cache.arena.array[slot] = key[31]
        self.seals.seal(0, spec.slots)
        self.manager.complete_store(set(output.keys_to_store), context)

    def end_step(self, *new: str) -> None:
        """End a scheduler step and wait for all transfers."""
        self.manager.on_schedule_end(ScheduleEndContext(new, ()))
        self.engine.drain(5.0)

    def lookups(self, context: ReqContext, keys: list[OffloadKey]) -> list[LookupResult]:
        return [self.manager.lookup(key, context) for key in keys]


@pytest.fixture
def bench() -> Iterator[Bench]:
    arena = Arena.create(8, SLOT)
    tier = FaultyTier(MemoryTier(32, name="disk"), seed=1)
    residency = Residency(arena, ["ram", "disk"], [Lru(), Lru()])
    engine = TransferEngine([tier], SLOT, queue_blocks=64)
    cache = TieredCache(residency, [tier], [Always(), Always()], engine, promote_deadline_s=5.0)
    seals, clock = Seals.create(8, 1), VirtualClock()
    manager = KVTierManager(
        cache,
        seals,
        clock,
        reporter=Reporter(cache, SLOT, TOKENS),
        tokens_per_key={0: TOKENS},
        slice_bytes=SLOT,
        emits_events=True,
        drain_s=1.0,
    )
    yield Bench(manager, cache, engine, seals, clock, tier)
    tier.release()
    manager.shutdown()


def _push_out(bench: Bench) -> None:
    """Fill RAM with another prefix, so that the earlier blocks are on the disk only."""
    context = ReqContext(req_id="other")
    keys = [make_offload_key((100 + i).to_bytes(32, "big"), 0) for i in range(8)]
    for i, key in enumerate(keys):
        context.set_offload_key_position(key, (i + 1) * TOKENS)
    bench.store(context, keys)
    bench.end_step()
    bench.manager.on_request_finished(context)


def test_stored_block_is_a_hit_with_bytes_and_source(bench: Bench) -> None:
    context, keys = bench.request("a", 4)
    assert bench.lookups(context, keys) == [MISS] * 4
    bench.store(context, keys)
    bench.end_step()
    assert bench.lookups(context, keys) == [HIT] * 4
    assert bench.manager.get_load_source(keys[0], context) is CacheHitSource.HOST
    spec = bench.manager.prepare_load(keys, context)
    assert isinstance(spec, ArenaLoadStoreSpec)
    assert [int(bench.cache.arena.array[slot, 0]) for slot in spec.slots] == [0, 1, 2, 3]
    bench.manager.complete_load(set(keys), context)
    bench.manager.on_request_finished(context)
    bench.cache.check()


def test_block_being_stored_is_pending_and_not_stored_twice(bench: Bench) -> None:
    context, keys = bench.request("a", 2)
    output = bench.manager.prepare_store(keys, context)
    assert output is not None
    assert bench.lookups(context, keys) == [PENDING] * 2
    again = bench.manager.prepare_store(keys, context)
    assert again is not None
    assert again.keys_to_store == []


def test_unsealed_slot_is_not_published(bench: Bench) -> None:
    context, keys = bench.request("a", 2)
    output = bench.manager.prepare_store(keys, context)
    assert output is not None
    assert isinstance(output.store_spec, ArenaLoadStoreSpec)
    bench.seals.seal(0, output.store_spec.slots[:1])
    bench.manager.complete_store(set(keys), context)
    assert bench.lookups(context, keys) == [HIT, MISS]


def test_lower_tier_block_is_pending_then_a_hit(bench: Bench) -> None:
    context, keys = bench.request("a", 4)
    bench.store(context, keys)
    bench.end_step()
    bench.manager.on_request_finished(context)
    _push_out(bench)
    later, keys = bench.request("b", 4)
    assert bench.lookups(later, keys) == [PENDING] * 4
    bench.end_step()
    assert bench.lookups(later, keys) == [HIT] * 4
    assert bench.manager.get_load_source(keys[0], later) is CacheHitSource.DISK
    spec = bench.manager.prepare_load(keys, later)
    assert isinstance(spec, ArenaLoadStoreSpec)
    assert [int(bench.cache.arena.array[slot, 7]) for slot in spec.slots] == [0, 1, 2, 3]


def test_corrupt_block_is_a_miss(bench: Bench) -> None:
    context, keys = bench.request("a", 3)
    bench.store(context, keys)
    bench.end_step()
    bench.manager.on_request_finished(context)
    _push_out(bench)
    later, keys = bench.request("b", 3)
    bench.lookups(later, keys)
    bench.tier.inject(Fault.BIT_FLIP, 1)
    bench.end_step()
    assert MISS in bench.lookups(later, keys)
    assert bench.cache.counters.tiers[1].corrupt_blocks == 1


def test_hanging_disk_is_a_miss_after_the_deadline(bench: Bench) -> None:
    context, keys = bench.request("a", 2)
    bench.store(context, keys)
    bench.end_step()
    bench.manager.on_request_finished(context)
    _push_out(bench)
    later, keys = bench.request("b", 2)
    bench.tier.inject(Fault.HUNG, 1)
    bench.lookups(later, keys)
    bench.manager.on_schedule_end(ScheduleEndContext((), ()))
    assert bench.lookups(later, keys)[0] is PENDING
    bench.clock.advance(5.1)
    bench.manager.on_schedule_end(ScheduleEndContext((), ()))
    assert bench.lookups(later, keys) == [MISS] * 2
    assert bench.cache.counters.expired_promotions == 1


def test_events_name_the_medium_of_the_tier(bench: Bench) -> None:
    context, keys = bench.request("a", 1)
    bench.store(context, keys)
    bench.end_step()
    bench.end_step()
    stored = [(event.medium, event.removed, event.keys) for event in bench.manager.take_events()]
    assert stored == [(Medium.CPU, False, keys), (Medium.STORAGE, False, keys)]
    _push_out(bench)
    removed = [event for event in bench.manager.take_events() if event.removed]
    assert [(event.medium, event.keys) for event in removed] == [(Medium.CPU, keys)]


def test_reset_removes_everything_and_releases_slots_after_flush(
    bench: Bench,
) -> None:
    context, keys = bench.request("a", 2)
    bench.store(context, keys)
    second, more = bench.request("b", 4)
    assert bench.manager.prepare_store(more, second) is not None
    bench.manager.reset_cache()
    assert bench.lookups(context, keys) == [MISS] * 2
    assert bench.manager.has_pending_work()
    assert bench.cache.arena.free < 8
    for _ in range(4):
        bench.end_step()
    assert not bench.manager.has_pending_work()
    assert bench.cache.arena.free == 8
    bench.cache.check()


def test_bug_disables_cache_and_not_engine(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    context, keys = bench.request("a", 2)
    bench.store(context, keys)

    def explode(*_: object) -> None:
        raise AssertionError("a broken invariant")

    monkeypatch.setattr(bench.cache, "presence", explode)
    assert bench.lookups(context, keys) == [MISS] * 2
    monkeypatch.undo()
    assert bench.lookups(context, keys) == [MISS] * 2
    output = bench.manager.prepare_store(keys, context)
    assert output is not None
    assert output.keys_to_store == []
    assert list(bench.manager.take_events()) == []


def test_stats_are_increments_and_sent_only_on_change(bench: Bench) -> None:
    context, keys = bench.request("a", 2)
    bench.store(context, keys)
    bench.end_step()
    bench.end_step()
    stats = bench.manager.get_stats()
    assert stats is not None
    values = stats.data["data"]
    assert values["kvtier_written_bytes"] == {("ram",): 2 * SLOT, ("disk",): 2 * SLOT}
    assert values["kvtier_capacity_blocks"] == {("ram",): 8, ("disk",): 32}
    # A series exists from the start, not only after its first increase.
    assert values["kvtier_evicted_blocks"] == {("ram",): 0, ("disk",): 0}
    assert values["kvtier_capacity_tokens"] == {("ram",): 8 * TOKENS, ("disk",): 32 * TOKENS}
    bench.clock.advance(1.0)
    assert bench.manager.get_stats() is None


def test_store_spec_is_no_gpu_spec(bench: Bench) -> None:
    # vLLM tells the two kinds of spec apart by their type.
    assert not isinstance(bench.manager.spec([1]), GPULoadStoreSpec)
