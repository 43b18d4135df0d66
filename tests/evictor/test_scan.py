import errno
import os
from pathlib import Path

import pytest

from kvtier.evictor.layouts import SHARDS, StoreTree
from kvtier.evictor.scan import SAVE_S, ScanCursor, put_cursor, scan_shard
from kvtier.evictor.table import Table
from kvtier.tiers.shared.posix import PosixStore
from tests.evictor.scenes import FOREIGN, TREE, Between, Killed, Scene, block, key_of

OWN = StoreTree(TREE, is_foreign=False)
OTHER = StoreTree("z-" + TREE, is_foreign=False)
TREES = [OWN, OTHER]


def filled() -> Scene:
    scene = Scene()
    scene.write(*range(200))
    scene.write(*range(50), tree=OTHER.name)
    return scene


def keys(scan: object, tree: StoreTree = OWN) -> list[bytes]:
    table = scan.tables[tree.name]  # type: ignore[attr-defined]
    return [table.name(row) for row in range(len(table))]


def test_scan_shard_finds_each_block_in_exactly_one_shard() -> None:
    scene = filled()
    found: dict[str, list[bytes]] = {OWN.name: [], OTHER.name: []}
    context = scene.context()
    for shard in SHARDS:
        scan = scan_shard(context, shard, TREES)
        for tree in TREES:
            found[tree.name] += keys(scan, tree)
    assert sorted(found[OWN.name]) == sorted(key_of(number) for number in range(200))
    assert sorted(found[OTHER.name]) == sorted(key_of(number) for number in range(50))
    assert context.report.scanned_files == 250


@pytest.mark.parametrize("dies_at", [1, 40, 200, 249])
def test_scan_shard_resumed_by_new_owner_finds_same_files(dies_at: int) -> None:
    """The cursor is written after each file, because each takes SAVE_S."""
    scene = filled()
    seen = 0

    context = scene.context()
    see = context.before_file

    def slowly(shard: str) -> None:
        nonlocal seen
        see(shard)
        scene.clock.advance(SAVE_S + 1)
        seen += 1
        if seen == dies_at:
            raise Killed

    context.before_file = slowly  # type: ignore[method-assign]
    for shard in SHARDS:
        try:
            scan_shard(context, shard, TREES)
        except Killed:
            break
    successor = scene.context()
    scan = scan_shard(successor, shard, TREES)
    again = scene.context()
    whole = scan_shard(again, shard, TREES)
    for tree in TREES:
        assert keys(scan, tree) == keys(whole, tree)
    assert scan.other == whole.other
    assert successor.report.scanned_files <= again.report.scanned_files
    assert not [name for name in scene.names() if "cursor" in name]


def test_scan_shard_resumed_looks_only_at_remaining_files() -> None:
    scene = Scene()
    same = [number for number in range(400) if key_of(number)[0] >> 4 == 0]
    scene.write(*same)
    context = scene.context()
    see = context.before_file

    def slowly(shard: str) -> None:
        see(shard)
        scene.clock.advance(SAVE_S + 1)
        if context.report.scanned_files == len(same) - 2:
            raise Killed

    context.before_file = slowly  # type: ignore[method-assign]
    with pytest.raises(Killed):
        scan_shard(context, "0", TREES)
    successor = scene.context()
    assert len(keys(scan_shard(successor, "0", TREES))) == len(same)
    assert successor.report.scanned_files == 3


def stopped_in(tree: StoreTree, scene: Scene, shard: str = "0") -> None:
    """Kill an evictor while it scans `tree`."""
    context = scene.context()
    see = context.before_file

    def slowly(shard: str) -> None:
        see(shard)
        scene.clock.advance(SAVE_S + 1)
        if context.report.scanned_files == 2:
            raise Killed

    context.before_file = slowly  # type: ignore[method-assign]
    with pytest.raises(Killed):
        scan_shard(context, shard, [tree])


def test_scan_shard_resumed_includes_new_tree_before_cursor() -> None:
    scene = filled()
    stopped_in(OTHER, scene)
    scan = scan_shard(scene.context(), "0", TREES)
    whole = scan_shard(scene.context(), "0", TREES)
    assert keys(scan, OWN) == keys(whole, OWN) != []
    assert keys(scan, OTHER) == keys(whole, OTHER)


@pytest.mark.parametrize(
    ("tree", "name"),
    [
        (TREE, b"\x11" * 36),  # of another shard
        (TREE, b"\x00"),
        (FOREIGN, b"../x.bin"),
        (FOREIGN, b"config.json"),
        (FOREIGN, b"\xff"),
        ("data", b"x"),
    ],
)
def test_scan_shard_ignores_forged_cursor(tree: str, name: bytes) -> None:
    scene = filled()
    table = Table()
    table.add(name, 1, 0.0, 0.0)
    forged = ScanCursor(tree, "", {tree: table.columns()}, {})
    shard = "0"
    put_cursor(scene.store, shard, forged)
    trees = [OWN, StoreTree(FOREIGN, is_foreign=True)]
    scan = scan_shard(scene.context(), shard, trees)
    fresh = scan_shard(scene.context(), shard, trees)
    for each in trees:
        assert keys(scan, each) == keys(fresh, each)


def test_scan_shard_counts_unreadable_folder_and_continues() -> None:
    scene = filled()

    class Refusing(Between):
        def before(self, verb: str, name: str) -> None:
            if verb == "list" and name.startswith(OWN.name):
                raise OSError(errno.EIO, "broken disk")

    context = scene.context(Refusing(scene.store))
    scans = [scan_shard(context, shard, TREES) for shard in SHARDS]
    assert sum(len(keys(scan, OTHER)) for scan in scans) == 50
    assert context.report.refused_calls == 16


def test_scan_shard_counts_or_reports_other_files(tmp_path: Path) -> None:
    store = PosixStore(tmp_path)
    scene = Scene()
    name = block(1)
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_bytes(os.urandom(10_000))
    folder = (tmp_path / name).parent
    (folder / "notes.txt").write_text("x")
    (folder / ".tmp-host-new").touch()
    (folder / ".tmp-host-old").touch()
    os.utime(folder / ".tmp-host-old", (1, 1))
    os.utime(folder / ".tmp-host-new", (scene.clock.now_s(), scene.clock.now_s()))
    context = scene.context(store, dry_run=False)
    scan = scan_shard(context, name.split("/")[-1][0], [OWN])
    assert keys(scan) == [key_of(1)]
    assert scan.tables[TREE].sizes[0] >= 10_000
    assert scan.other[TREE].inodes == 2, "a folder and a new temporary file"
    assert context.report.unknown == [f"{name.rpartition('/')[0]}/notes.txt"]
    assert context.report.freed["orphan"].files == 1
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [Path(name).name, "notes.txt", ".tmp-host-new"]
    )
    store.close()


def test_scan_shard_uses_access_times_in_foreign_trees(tmp_path: Path) -> None:
    store = PosixStore(tmp_path)
    folder = tmp_path / FOREIGN / "abc" / "de_g0"
    folder.mkdir(parents=True)
    for name, read_s, written_s in (("aa.bin", 50, 10), ("bb.bin", 10, 20)):
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (read_s, written_s))
    scan = scan_shard(Scene().context(store), "a", [StoreTree(FOREIGN, is_foreign=True)])
    assert scan.tables[FOREIGN].recent.tolist() == [50, 20]
    store.close()
