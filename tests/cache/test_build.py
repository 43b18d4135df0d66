import threading
from pathlib import Path

import msgspec
import pytest

from kvtier import plugins
from kvtier.admission.always import Always
from kvtier.blocks.key import UNKNOWN_PARENT
from kvtier.blocks.layout import BlockLayout
from kvtier.cache import build
from kvtier.cache.build import adopt, blocks_per_segment, build_cache
from kvtier.cache.core import TieredCache
from kvtier.clock import MonotonicClock, VirtualClock
from kvtier.errors import InvalidSettings
from kvtier.index.local import Presence
from kvtier.settings import DiskSettings, RamSettings, Settings, SharedSettings, TransferSettings
from kvtier.testing.faults import Fault, FaultyTier
from kvtier.testing.memory_tier import MemoryTier
from kvtier.testing.samples import sample_space
from kvtier.testing.transfers import InlineTransfers
from kvtier.tiers.base import BlockMove, ScanPage
from kvtier.transfer.base import Direction
from tests.cache.caches import (
    PAYLOAD_BYTES,
    SLOT_BYTES,
    chain,
    fill,
    has_right_bytes,
    key,
    make_residency,
    memory_tier,
    parents,
)

LAYOUT = BlockLayout(block_bytes=SLOT_BYTES, tokens_per_block=16)
SPACE = sample_space(block_bytes=SLOT_BYTES)
DISK_BYTES = 8 * 1024 * 1024
WAIT_S = 30.0


def settings(disk: Path | None = None, slots: int = 8, **disk_options: str) -> Settings:
    return Settings(
        ram=RamSettings(capacity=slots * SLOT_BYTES),
        disk=DiskSettings(path=str(disk), capacity=DISK_BYTES, **disk_options) if disk else None,
        transfer=TransferSettings(queue_blocks=64),
    )


def save(cache: TieredCache, keys) -> None:
    begun = cache.begin_save(keys, parents(keys))
    assert begun is not None
    fill(cache, begun)
    cache.end_save(begun)


def run_until_idle(cache: TieredCache) -> None:
    cache._engine.drain(WAIT_S)
    cache.step(0.0)
    cache.check()


def test_build_cache_with_ram_only() -> None:
    cache = build_cache(settings(), LAYOUT, SPACE)
    assert list(cache.tier_names) == ["ram"]
    assert cache.capacity_blocks == [8]
    save(cache, chain(3))
    assert cache.lookup(chain(3)) == 3
    cache.close()


def test_build_cache_finds_blocks_of_earlier_process(tmp_path: Path) -> None:
    folder = tmp_path / "slab"
    keys = chain(6)
    cache = build_cache(settings(folder, slots=16), LAYOUT, SPACE)
    save(cache, keys)
    run_until_idle(cache)
    assert list(cache.resident_blocks) == [6, 6]
    cache.close(WAIT_S)

    cache = build_cache(settings(folder, slots=16), LAYOUT, SPACE)
    assert list(cache.resident_blocks) == [0, 6]
    assert cache.take_events() == []
    assert cache.lookup(keys) == 6
    cache.check()
    cache.promote("r", keys)
    run_until_idle(cache)
    load = cache.begin_load("r", keys)
    assert load is not None
    assert all(has_right_bytes(cache, *each) for each in zip(keys, load.slots, strict=True))
    assert cache.queued_blocks(1, Direction.READ) == 0
    cache.close()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"slots": 1}, "ram.capacity"),
        ({"eviction": "no_such_policy"}, "no_such_policy"),
        ({"admission": "no_such_policy"}, "no_such_policy"),
    ],
)
def test_build_cache_with_wrong_setting_raises_and_leaves_no_thread(
    tmp_path: Path, wrong: dict[str, object], message: str
) -> None:
    before = threading.active_count()
    slots = wrong.pop("slots", 8)
    with pytest.raises(InvalidSettings, match=message):
        build_cache(settings(tmp_path / "slab", slots, **wrong), LAYOUT, SPACE)
    assert threading.active_count() == before


def test_build_cache_failure_releases_disk_folder(tmp_path: Path) -> None:
    folder = tmp_path / "slab"
    with pytest.raises(InvalidSettings):
        build_cache(settings(folder, slots=1 << 50), LAYOUT, SPACE)
    build_cache(settings(folder), LAYOUT, SPACE).close()


def write(tier, keys, before) -> None:
    slot = make_residency(1)
    tier.write_from([BlockMove(each, slot.arena.view(0)) for each in keys], before)
    slot.arena.close()


def test_adopted_chains_are_evicted_leaf_first() -> None:
    tier = memory_tier()
    first, second = chain(3, salt=1), chain(3, salt=2)
    write(tier, [*first, *second], [*parents(first), *parents(second)])
    residency = make_residency(4, [tier])
    assert adopt(residency, 1, tier) == 6
    residency.check()
    assert residency.make_room(1, 4) == [first[2], first[1], first[0], second[2]]
    residency.arena.close()


def test_adopted_blocks_without_parents_are_detached() -> None:
    tier = memory_tier()
    keys = chain(5)
    write(tier, [keys[2], keys[3], key(999)], [keys[1], keys[2], UNKNOWN_PARENT])
    residency = make_residency(4, [tier])
    adopt(residency, 1, tier)
    residency.check()
    assert residency.index.detached == 2
    assert residency.index.longest_prefix(keys) == 0
    assert residency.index.longest_prefix(keys[2:]) == 2
    residency.arena.close()


def test_adopt_merges_blocks_of_two_tiers() -> None:
    fast, slow = memory_tier(name="fast"), memory_tier(name="slow")
    keys = chain(3)
    write(fast, keys[:2], parents(keys[:2]))
    write(slow, keys, parents(keys))
    residency = make_residency(4, [fast, slow])
    assert adopt(residency, 1, fast) == 2
    assert adopt(residency, 2, slow) == 3
    residency.check()
    assert [residency.index.held[residency.index.rows[each]] for each in keys] == [6, 6, 4]
    residency.arena.close()


def test_adopt_accepts_stale_listing() -> None:
    inner = memory_tier(3)
    tier = FaultyTier(inner, block_bytes=PAYLOAD_BYTES)
    write(tier, chain(2, salt=1), parents(chain(2, salt=1)))
    tier.delete(chain(2, salt=1))
    write(tier, chain(3, salt=2), parents(chain(3, salt=2)))
    tier.inject(Fault.STALE_LISTING)
    residency = make_residency(4, [tier])
    assert adopt(residency, 1, tier) == 5
    residency.check()
    residency.arena.close()


class Repeating(MemoryTier):
    """A tier whose scan lists every block twice on its page, and the page twice."""

    def scan(self, cursor: int | None = None) -> ScanPage:
        page = super().scan()
        return ScanPage(page.blocks * 2, 1 if cursor is None else None)


def test_adopt_counts_block_listed_twice_once() -> None:
    tier = Repeating(name="below")
    write(tier, chain(3), parents(chain(3)))
    residency = make_residency(4, [tier])
    assert adopt(residency, 1, tier) == 3
    residency.check()
    residency.arena.close()


def test_adopted_blocks_beyond_capacity_are_deleted() -> None:
    inner = memory_tier(5)
    write(inner, chain(5), parents(chain(5)))
    inner.capabilities = msgspec.structs.replace(inner.capabilities, capacity_blocks=3)
    tier = FaultyTier(inner)
    tier.inject(Fault.IO_ERROR)
    residency = make_residency(8, [tier])
    assert adopt(residency, 1, tier) == 5
    transfers = InlineTransfers([tier], VirtualClock())
    cache = TieredCache(residency, [tier], [Always(), Always()], transfers, 1.0)
    assert list(cache.resident_blocks) == [0, 3]
    for salt in range(1, 4):
        # The first deletion fails, and is retried when there is something to write.
        cache.step(0.0)
        cache.check()
        save(cache, chain(1, salt))
    for _ in range(4):
        cache.step(0.0)
        cache.check()
    assert len(inner) == 3
    assert cache.deleting_blocks(1) == 0
    cache.close()


def test_shared_tier_that_opens_too_late_raises_and_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, closed = threading.Event(), threading.Event()

    class Slow(MemoryTier):
        def __init__(self, *_: object, **__: object) -> None:
            gate.wait(WAIT_S)
            super().__init__()

        def close(self) -> None:
            closed.set()

    load = plugins.load
    monkeypatch.setattr(
        plugins, "load", lambda kind, name: Slow if kind == "tiers" else load(kind, name)
    )
    monkeypatch.setattr(build, "_OPEN_S", 0.01)
    wanted = Settings(
        ram=RamSettings(capacity=8 * SLOT_BYTES), shared=SharedSettings(path=str(tmp_path))
    )
    with pytest.raises(InvalidSettings, match=r"shared\.path: no answer within"):
        build_cache(wanted, LAYOUT, SPACE)
    gate.set()
    assert closed.wait(WAIT_S)


def test_engines_sharing_a_folder_find_each_others_blocks(tmp_path: Path) -> None:
    wanted = Settings(
        ram=RamSettings(capacity=8 * SLOT_BYTES),
        shared=SharedSettings(path=str(tmp_path / "kv"), io_threads=2),
    )
    writer, reader = (build_cache(wanted, LAYOUT, SPACE) for _ in range(2))
    keys = chain(4)
    save = writer.begin_save(keys, parents(keys))
    assert save is not None
    fill(writer, save)
    writer.end_save(save)
    clock = MonotonicClock()
    give_up_s = clock.now_s() + WAIT_S
    while reader.presence("r", keys[-1]) is not Presence.READY:
        for cache in (writer, reader):
            cache.step(clock.now_s())
        # A query that comes too early would have to wait for the recheck interval.
        if writer.resident_blocks[1] == 4:
            if reader.presence("r", keys[-1]) is Presence.UNKNOWN:
                reader.discover("r", keys)
            reader.promote("r", keys)
        assert clock.now_s() < give_up_s
    load = reader.begin_load("r", keys)
    assert load is not None
    assert all(has_right_bytes(reader, *pair) for pair in zip(load.keys, load.slots, strict=True))
    reader.end_load(load)
    for cache in (writer, reader):
        cache.check()
        cache.close(1.0)


@pytest.mark.parametrize(
    ("block_bytes", "blocks"),
    [(64 << 10, 32), (1 << 20, 16), (5 << 20, 3), (40 << 20, 1)],
    ids=["by tokens", "by bytes", "whole blocks only", "a block is never cut"],
)
def test_blocks_per_segment_is_bounded_by_tokens_and_bytes(block_bytes: int, blocks: int) -> None:
    layout = BlockLayout(block_bytes=block_bytes, tokens_per_block=16)
    assert blocks_per_segment(512, layout) == blocks
