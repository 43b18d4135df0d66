"""Whole passes of one evictor; `test_evictor_together` runs several at the same time."""

import errno
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest

from kvtier.errors import InvalidSettings
from kvtier.evictor.budget import Bounds, Watermarks
from kvtier.evictor.evictor import Evictor
from kvtier.evictor.filesystem import FileSystemUsage
from kvtier.evictor.leases import REST
from kvtier.evictor.options import EvictorOptions
from kvtier.evictor.report import summary_line
from kvtier.tiers.shared.posix import PosixStore
from tests.evictor.scenes import FOREIGN, TREE, Between, Scene, block, key_of

SECOND = "other-" + "0" * 16


def evictor(scene: Scene, **options: object) -> Evictor:
    return Evictor(scene.store, EvictorOptions(**options), clock=scene.clock)  # type: ignore[arg-type]


def bounded(high: int, low: int) -> Bounds:
    return Bounds(Watermarks(high, low))


def filled(count: int = 100) -> Scene:
    scene = Scene()
    for number in range(count):
        scene.write(number, size=10_000)
        scene.clock.advance(10)
    scene.clock.advance(1000)
    return scene


def test_pass_evicts_coldest_blocks_of_all_shards() -> None:
    scene = filled()
    scene.read(*range(10))
    scene.clock.advance(100)
    report = evictor(scene, bounds=bounded(800_000, 700_000)).run_once()
    left = scene.blocks()
    assert left == [*range(10), *range(left[10], 100)]
    assert 68 <= len(left) <= 70
    assert report.left_bytes <= 700_000
    assert report.short_bytes == 0
    assert report.freed["bound"].files == 100 - len(left)
    assert evictor(scene, bounds=bounded(800_000, 700_000)).run_once().freed_files == 0


def test_recency_survives_restart_of_evictor() -> None:
    scene = filled()
    scene.read(*range(10))
    scene.clock.advance(100)
    first = evictor(scene, bounds=bounded(10**9, 10**8))
    first.run_once()
    first.close()
    assert not [name for name in scene.names() if name.endswith(".log")]
    evictor(scene, bounds=bounded(300_000, 200_000)).run_once()
    assert scene.blocks()[:10] == list(range(10))


def test_pass_keeps_inode_bound() -> None:
    scene = filled()
    report = evictor(scene, bounds=Bounds(inodes=Watermarks(150, 120))).run_once()
    assert report.left_inodes <= 120
    assert report.freed_files >= report.used_inodes - 120
    assert 0 < len(scene.blocks()) < 100


def test_quota_evicts_from_its_tree_only() -> None:
    scene = filled()
    scene.write(*range(50), size=10_000, tree=SECOND)
    scene.clock.advance(100)
    report = evictor(scene, quotas={TREE: bounded(600_000, 500_000)}).run_once()
    assert len(scene.blocks()) <= 50
    assert len(scene.blocks(SECOND)) == 50
    assert report.freed["quota"].files == 100 - len(scene.blocks())
    assert report.trees[SECOND].freed.files == 0
    assert report.trees[TREE].short_bytes == 0


def test_quota_that_cannot_be_kept_is_reported() -> None:
    scene = filled()
    scene.read(*range(90))
    report = evictor(scene, quotas={TREE: bounded(600_000, 500_000)}).run_once()
    assert len(scene.blocks()) == 90
    assert 400_000 <= report.trees[TREE].short_bytes < 420_000
    assert f"beyond the quota of {TREE}, in use" in summary_line(report)


def test_blocks_in_use_stay_above_bound() -> None:
    scene = filled()
    scene.read(*range(90))
    report = evictor(scene, bounds=bounded(200_000, 100_000)).run_once()
    assert scene.blocks() == list(range(90))
    assert report.short_bytes > 0


def test_dry_run_changes_nothing_and_predicts_pass() -> None:
    scene = filled()
    scene.read(*range(10))
    scene.store.put(f"{TREE}/quarantine/broken.kvt", bytes(200_000))
    scene.clock.advance(100)
    before = scene.names()
    report = evictor(scene, bounds=bounded(800_000, 700_000), dry_run=True).run_once()
    assert scene.names() == before
    again = evictor(scene, bounds=bounded(800_000, 700_000)).run_once()
    assert abs(report.freed_files - again.freed_files) <= 2
    assert report.used_bytes == pytest.approx(again.used_bytes, rel=0.02)


def test_filesystem_bound_uses_measured_bytes() -> None:
    scene = filled()
    made = Evictor(
        scene.store,
        EvictorOptions(bounds=bounded(8_500_000, 8_000_000), of_filesystem=True),
        clock=scene.clock,
        filesystem=lambda: FileSystemUsage(10_000_000, 8_600_000),
    )
    report = made.run_once()
    assert report.used_bytes == 8_600_000
    assert 600_000 <= report.freed_bytes <= 620_000


def test_newer_format_fails_check_and_is_skipped_in_pass() -> None:
    scene = filled()
    scene.write(*range(50), size=10_000, tree=SECOND)
    scene.clock.advance(1000)
    made = evictor(scene, bounds=bounded(100_000, 50_000), delete_unknown=True)
    made.check()
    scene.store.put(f"{SECOND}/manifest.json", b'{"format": 7}')
    with pytest.raises(InvalidSettings, match=re.escape(f"PATH: {SECOND}/manifest.json is of")):
        made.check()
    report = made.run_once()
    assert list(report.refused_trees) == [SECOND]
    assert len(scene.blocks(SECOND)) == 50
    assert len(scene.blocks()) <= 10


def test_passes_continue_when_store_refuses_calls() -> None:
    scene = filled()
    chance = random.Random(1)

    class Refusing(Between):
        def before(self, verb: str, name: str) -> None:
            if chance.random() < 0.05 and not name.startswith("leases"):
                raise OSError(errno.EIO, "no")

    made = Evictor(
        Refusing(scene.store), EvictorOptions(bounds=bounded(500_000, 400_000)), clock=scene.clock
    )
    refused = 0
    for _ in range(20):
        try:
            refused += made.run_once().refused_calls
        except OSError:
            pass
        scene.clock.advance(10)
    assert refused > 0
    assert len(scene.blocks()) <= 50


def test_full_store_is_freed_without_heartbeat() -> None:
    scene = filled()
    scene.read(*range(10))
    scene.clock.advance(100)
    scene.write(500, size=10_000)

    class Full(Between):
        def before(self, verb: str, name: str) -> None:
            held = sum(entry.stat.size for entry in scene.store.list("", limit=10**6).entries)
            if verb in ("put", "publish") and held > 1_000_000:
                raise OSError(errno.ENOSPC, "full")

    made = Evictor(
        Full(scene.store), EvictorOptions(bounds=bounded(700_000, 600_000)), clock=scene.clock
    )
    report = made.run_once()
    assert report.shards_owned == 17
    assert scene.blocks()[:10] == list(range(10))
    assert scene.blocks()[-1] == 500
    assert len(scene.blocks()) <= 60
    made.close()


def test_wait_renews_leases() -> None:
    scene = filled(3)
    made = evictor(scene, bounds=bounded(800_000, 700_000))
    made.run_once()
    began_s = scene.clock.now_s()
    made.wait(3600)
    assert scene.clock.now_s() - began_s == pytest.approx(3600)
    assert len(made.owned) == 17
    made.close()
    assert made.owned == []


def test_posix_store_is_bounded_by_physical_size(tmp_path: Path) -> None:
    """Holes of sparse files do not count; empty folders and foreign blocks are removed."""
    store = PosixStore(tmp_path)
    for number in range(40):
        store.publish(block(number), [np.frombuffer(os.urandom(64 << 10), np.uint8)])
        os.utime(tmp_path / block(number), (1e9 + number, 1e9 + number))
    hole = tmp_path / TREE / "quarantine" / "holes.kvt"
    hole.parent.mkdir()
    with hole.open("wb") as file:
        file.truncate(1 << 40)
    foreign = tmp_path / FOREIGN / "abc" / "de_g0"
    foreign.mkdir(parents=True)
    (foreign / "aa.bin").write_bytes(os.urandom(64 << 10))
    os.utime(foreign / "aa.bin", (1e9 - 1, 1e9 - 1))
    os.sync()
    options = EvictorOptions(bounds=bounded(2 << 20, 1 << 20))
    made = Evictor(store, options)
    report = made.run_once()
    assert 40 * (64 << 10) <= report.used_bytes < 4 << 20
    assert not (foreign / "aa.bin").exists()
    left = sorted((tmp_path / TREE / "blocks").glob("*/*.kvt"))
    assert 12 <= len(left) <= 16
    assert {path.stem for path in left} <= {key_of(number).hex() for number in range(24, 40)}
    assert len(list((tmp_path / TREE / "blocks").iterdir())) <= len(left)
    assert hole.exists()
    made.close()
    store.close()


def test_usage_of_rest_comes_from_its_new_owner() -> None:
    """The first evictor's own usage of `rest` is stale once another evictor owns that shard."""
    scene = filled(50)
    scene.store.put(f"{TREE}/quarantine/one.kvt", bytes(400_000))
    first, second = (evictor(scene, bounds=bounded(2_000_000, 1_000_000)) for _ in range(2))
    assert first.run_once().used_bytes > 900_000
    scene.store.remove(f"{TREE}/quarantine/one.kvt")
    for each in (second, first, second):
        each.run_once()
    assert REST not in first.owned
    assert REST in second.owned
    assert first.run_once().used_bytes < 600_000


def test_nested_mounts_are_ignored(caplog: pytest.LogCaptureFixture) -> None:
    scene = filled()
    scene.write(*range(50), size=10_000, tree=SECOND)
    scene.store.put("backup/mounted/precious", b"x")
    scene.clock.advance(10_000)
    made = Evictor(
        scene.store,
        EvictorOptions(bounds=bounded(100_000, 50_000), delete_unknown=True),
        clock=scene.clock,
        mounts=lambda: [f"{SECOND}/blocks", "backup/mounted"],
    )
    made.check()
    assert f"mounted there: {SECOND}/blocks" in caplog.text
    report = made.run_once()
    assert len(scene.blocks(SECOND)) == 50
    assert "backup/mounted/precious" in scene.names()
    assert len(scene.blocks()) <= 10
    assert report.unknown_files == 0


def test_quota_for_missing_folder_fails_check_and_lists_folders() -> None:
    scene = filled(3)
    with pytest.raises(InvalidSettings, match=f"no folder {SECOND} in the store; .*: {TREE}"):
        evictor(scene, quotas={SECOND: bounded(2, 1)}).check()
    evictor(scene, quotas={TREE: bounded(2, 1)}).check()


def test_space_that_becomes_free_late_is_not_evicted_again() -> None:
    scene = filled()
    made = Evictor(
        scene.store,
        EvictorOptions(bounds=bounded(8_500_000, 8_000_000), of_filesystem=True),
        clock=scene.clock,
        filesystem=lambda: FileSystemUsage(10_000_000, 8_600_000),
    )
    assert made.run_once().freed_bytes >= 600_000
    scene.clock.advance(30)
    assert made.run_once().freed_bytes == 0
    scene.clock.advance(100)
    assert made.run_once().freed_bytes > 0, "the space counts as used again"


def test_expired_blocks_count_as_free_at_once() -> None:
    scene = filled()
    scene.write(*range(100, 150), size=10_000)
    scene.clock.advance(100)
    made = Evictor(
        scene.store,
        EvictorOptions(bounds=bounded(8_500_000, 8_000_000), of_filesystem=True, ttl_s=1000),
        clock=scene.clock,
        filesystem=lambda: FileSystemUsage(10_000_000, 8_600_000),
    )
    report = made.run_once()
    assert report.freed["ttl"].files == 100
    assert report.freed["bound"].files == 0
    assert len(scene.blocks()) == 50


def test_symbolic_links_are_not_followed(tmp_path: Path) -> None:
    """Links to a file, to a folder of blocks, and to a whole tree."""
    elsewhere = tmp_path / "elsewhere"
    kept = PosixStore(elsewhere.parent)
    for number in range(8):
        kept.publish(f"elsewhere/{block(number)}", [np.zeros(9000, np.uint8)])
    kept.close()
    root = tmp_path / "kv"
    (root / TREE / "blocks").mkdir(parents=True)
    (root / SECOND).symlink_to(elsewhere / TREE)
    folder = (elsewhere / block(0)).parent
    (root / TREE / "blocks" / folder.name).symlink_to(folder)
    one = root / block(1)
    one.parent.mkdir(exist_ok=True)
    one.symlink_to(elsewhere / block(1))
    for path in elsewhere.rglob("*.kvt"):
        os.utime(path, (1e9, 1e9))
    store = PosixStore(root)
    made = Evictor(store, EvictorOptions(bounds=bounded(2, 1), ttl_s=60, delete_unknown=True))
    assert made.run_once().freed_files == 0
    assert len(list(elsewhere.rglob("*.kvt"))) == 8
    assert one.is_symlink()
    made.close()
    store.close()


def test_manifest_that_is_a_pipe_does_not_block_pass(tmp_path: Path) -> None:
    store = PosixStore(tmp_path)
    for tree in (TREE, SECOND):
        store.publish(block(1, tree), [np.zeros(9000, np.uint8)])
        os.utime(tmp_path / block(1, tree), (1e9, 1e9))
    os.mkfifo(tmp_path / TREE / "manifest.json")
    made = Evictor(store, EvictorOptions(ttl_s=60))
    report = made.run_once()
    assert list(report.refused_trees) == [TREE]
    assert (tmp_path / block(1)).exists()
    assert not (tmp_path / block(1, SECOND)).exists()
    made.close()
    store.close()


@pytest.mark.parametrize(
    "name", ["manifest.json", f"blocks/abc/{'abc' * 4}.kvt", "abc/de_g0/aa.bin"]
)
def test_path_inside_a_tree_fails_check(name: str) -> None:
    """All files are unknown there, so nothing would be evicted, or everything deleted."""
    scene = Scene()
    scene.store.put(name, b"{}")
    with pytest.raises(InvalidSettings, match=r"PATH: .* name the folder above it"):
        evictor(scene, ttl_s=60).check()
    scene.write(1)
    evictor(scene, ttl_s=60).check()


def test_delete_unknown_without_known_tree_fails_check() -> None:
    scene = Scene()
    first = evictor(scene, delete_unknown=True, ttl_s=60)
    first.check()
    first.run_once()
    evictor(scene, delete_unknown=True, ttl_s=60).check()
    scene.store.put("photos/1.jpg", b"x")
    evictor(scene, ttl_s=60).check()
    with pytest.raises(InvalidSettings, match="--delete-unknown: nothing here has a known"):
        evictor(scene, delete_unknown=True, ttl_s=60).check()
    scene.write(1)
    evictor(scene, delete_unknown=True, ttl_s=60).check()


def test_unreadable_journal_protects_its_tree_only_for_grace_period() -> None:
    scene = filled()
    scene.write(*range(50), size=10_000, tree=SECOND)
    scene.clock.advance(1000)
    scene.read(*range(5))
    scene.read(1, tree=SECOND)

    class Refusing(Between):
        def before(self, verb: str, name: str) -> None:
            if verb == "read" and name.startswith(f"{TREE}/access") and name.endswith(".log"):
                raise OSError(errno.EIO, "broken disk")

    options = EvictorOptions(bounds=bounded(300_000, 200_000), ttl_s=500)
    made = Evictor(Refusing(scene.store), options, clock=scene.clock)
    report = made.run_once()
    assert len(scene.blocks()) == 100, "the journal may report a recent read"
    assert scene.blocks(SECOND) == [1]
    assert report.short_bytes > 700_000
    scene.clock.advance(100)
    made.run_once()
    assert scene.blocks() == [], "the journal is older than the grace period"
