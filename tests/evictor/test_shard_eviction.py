"""Blocks that are evicted from one shard, and blocks that stay."""

import errno
import os
from pathlib import Path

import pytest

from kvtier.evictor.budget import Amount
from kvtier.evictor.context import PassContext
from kvtier.evictor.layouts import StoreTree
from kvtier.evictor.shard_eviction import USES_REFRESH_S, ShardEviction
from kvtier.evictor.table import Table
from kvtier.tiers.shared.posix import PosixStore
from tests.evictor.scenes import FOREIGN, TREE, Between, Scene, block, key_of

OWN = StoreTree(TREE, is_foreign=False)
SAME = [number for number in range(900) if key_of(number)[0] >> 4 == 7][:20]
"""Blocks of one shard."""


def scanned(scene: Scene, context: PassContext) -> ShardEviction:
    table = Table()
    for entry in scene.store.list(f"{TREE}/blocks", limit=1000).entries:
        table.add(OWN.pack(entry.name), entry.stat.size, *2 * [entry.stat.modified_s])
    part = ShardEviction(context, "7", OWN, table, Amount(500, 3))
    part.update_uses()
    return part


def filled() -> Scene:
    """Return a scene with blocks written a minute apart, the last of them an hour ago."""
    scene = Scene()
    for number in SAME:
        scene.write(number)
        scene.clock.advance(60)
    scene.clock.advance(3600)
    return scene


def left(scene: Scene) -> list[int]:
    return [number for number in SAME if scene.store.stat(block(number))]


def test_free_evicts_coldest_until_amount_is_free() -> None:
    scene = filled()
    part = scanned(scene, scene.context())
    assert part.usage.amount == Amount(20_500, 23)
    assert part.free(Amount(4500, 0), "bound") == Amount()
    assert left(scene) == SAME[5:]
    assert part.usage.amount == Amount(15_500, 18)
    assert part.free(Amount(0, 2), "bound") == Amount()
    assert left(scene) == SAME[7:]
    assert sum(step.files for step in part.usage.steps) == 13


def test_free_keeps_blocks_read_in_grace_period() -> None:
    scene = filled()
    scene.read(*SAME[:3])
    scene.clock.advance(600)
    scene.read(*SAME[3:6])
    scene.clock.advance(30)
    context = scene.context()
    part = scanned(scene, context)
    assert part.free(Amount(100_000, 0), "bound").size_bytes > 0
    assert left(scene) == SAME[3:6], "read within the grace period"
    assert context.report.freed["bound"].files == 17
    assert context.report.trees[TREE].freed.files == 17


def test_free_keeps_blocks_written_in_grace_period() -> None:
    scene = filled()
    scene.store.put(block(SAME[0]), b"new")
    scanned(scene, scene.context()).free(Amount(100_000, 0), "bound")
    assert left(scene) == SAME[:1]


def test_free_keeps_block_rewritten_after_scan() -> None:
    scene = filled()
    part = scanned(scene, scene.context())
    scene.store.put(block(SAME[0]), b"new")
    part.free(Amount(2000, 0), "bound")
    assert left(scene) == [SAME[0], *SAME[3:]]


def test_free_keeps_block_read_during_eviction() -> None:
    """A journal is written while blocks are removed at a low rate."""
    scene = filled()
    context = scene.context(deletes_per_second=0.5)
    part = scanned(scene, context)
    remove = context.remove
    in_order = sorted(SAME, key=key_of)

    def removing(shard: str, name: str, size_bytes: int, reason: str) -> bool:
        if name == block(in_order[1]):
            scene.read(in_order[15])
            scene.clock.advance(USES_REFRESH_S)
        return remove(shard, name, size_bytes, reason)

    context.remove = removing  # type: ignore[method-assign]
    part.free(Amount(100_000, 0), "bound")
    assert left(scene) == [in_order[15]]


def test_free_removes_batch_in_name_order() -> None:
    scene = filled()
    store = Between(scene.store)
    scanned(scene, scene.context(store)).free(Amount(9500, 0), "bound")
    removed = [name for verb, name in store.calls if verb == "remove"]
    assert removed == sorted(map(block, SAME[:10]))


def test_free_stops_when_journals_cannot_be_read() -> None:
    scene = filled()

    class Refusing(Between):
        refuses = False

        def before(self, verb: str, name: str) -> None:
            if self.refuses and verb == "list":
                raise OSError(errno.EIO, "no")

    store = Refusing(scene.store)
    part = scanned(scene, scene.context(store))
    store.refuses = True
    scene.clock.advance(USES_REFRESH_S + 1)
    with pytest.raises(OSError, match="no"):
        part.free(Amount(5000, 0), "bound")
    assert left(scene) == SAME


def test_free_counts_blocks_removed_by_others() -> None:
    scene = filled()
    context = scene.context()
    part = scanned(scene, context)
    scene.store.remove(block(SAME[0]))
    assert part.free(Amount(2000, 0), "bound") == Amount()
    assert left(scene) == SAME[2:]
    assert context.report.freed["bound"].files == 1


def test_expire_removes_old_blocks_outside_grace_period() -> None:
    scene = filled()
    scene.read(SAME[0])
    context = scene.context(ttl_s=3600 + 10 * 60 + 1)
    scanned(scene, context).expire()
    assert left(scene) == [SAME[0], *SAME[10:]]
    assert context.report.freed["ttl"].files == 9
    context = scene.context(ttl_s=1.0, grace_s=3600 + 5 * 60 + 1)
    scanned(scene, context).expire()
    assert left(scene) == [SAME[0], *SAME[15:]]


def test_free_skips_blocks_that_store_refuses() -> None:
    scene = filled()

    class Refusing(Between):
        def before(self, verb: str, name: str) -> None:
            if (verb == "remove" and name == block(SAME[0])) or name == block(SAME[1]):
                raise OSError(errno.EACCES, "no")

    context = scene.context(Refusing(scene.store))
    assert scanned(scene, context).free(Amount(3000, 0), "bound") == Amount()
    assert left(scene) == [*SAME[:2], *SAME[5:]]
    assert context.report.refused_calls == 2


def test_free_keeps_foreign_block_read_after_scan(tmp_path: Path) -> None:
    """Only the access time tells of the read, and a resumed scan may be an hour old."""
    tree = StoreTree(FOREIGN, is_foreign=True)
    folder = tmp_path / FOREIGN / "abc" / "de_g0"
    folder.mkdir(parents=True)
    for name in ("aa", "bb", "cc"):
        (folder / f"{name}.bin").write_bytes(b"x")
        os.utime(folder / f"{name}.bin", (1e9, 1e9))
    store = PosixStore(tmp_path)
    context = Scene().context(store)
    table = Table()
    for name in ("aa", "bb", "cc"):
        table.add(f"abc/de_g0/{name}.bin".encode(), 4096, 1e9, 1e9)
    os.utime(folder / "bb.bin", (1e9 + 5, 1e9))
    (folder / "cc.bin").unlink()
    part = ShardEviction(context, "a", tree, table, Amount())
    part.update_uses()
    assert part.free(Amount(0, 3), "bound") == Amount(0, 1)
    assert [path.name for path in folder.iterdir()] == ["bb.bin"]
    store.close()


def test_usage_has_no_steps_before_journals_are_read() -> None:
    """Otherwise evictors would count on space that cannot be freed."""
    scene = filled()
    table = Table()
    table.add(key_of(SAME[0]), 1000, 1.0, 1.0)
    context = scene.context(ttl_s=1.0)
    part = ShardEviction(context, "7", OWN, table, Amount())
    part.expire()
    assert (part.usage.files, part.usage.steps) == (1, [])
    assert left(scene) == SAME
    part.update_uses()
    assert [step.files for step in part.usage.steps] == [1]
