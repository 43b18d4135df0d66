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


def test_the_shards_together_are_every_block_once() -> None:
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
def test_who_takes_over_goes_on_where_it_stopped(dies_at: int) -> None:
    """Each file is slow, so progress is kept at each; the heir sees the rest only."""
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
    heir = scene.context()
    scan = scan_shard(heir, shard, TREES)
    again = scene.context()
    whole = scan_shard(again, shard, TREES)
    for tree in TREES:
        assert keys(scan, tree) == keys(whole, tree)
    assert scan.other == whole.other
    assert heir.report.scanned_files <= again.report.scanned_files
    assert not [name for name in scene.names() if "cursor" in name]


def test_progress_is_used() -> None:
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
    heir = scene.context()
    assert len(keys(scan_shard(heir, "0", TREES))) == len(same)
    assert heir.report.scanned_files == 3


def stopped_in(tree: StoreTree, scene: Scene, shard: str = "0") -> None:
    """An evictor dies while it scans `tree`."""
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


def test_a_tree_that_appears_before_the_one_a_dead_scan_stood_in() -> None:
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
def test_a_forged_cursor_makes_nobody_remove_what_is_no_block(tree: str, name: bytes) -> None:
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


def test_a_refusing_folder_does_not_hide_the_others() -> None:
    scene = filled()

    class Refusing(Between):
        def before(self, verb: str, name: str) -> None:
            if verb == "list" and name.startswith(OWN.name):
                raise OSError(errno.EIO, "broken disk")

    context = scene.context(Refusing(scene.store))
    scans = [scan_shard(context, shard, TREES) for shard in SHARDS]
    assert sum(len(keys(scan, OTHER)) for scan in scans) == 50
    assert context.report.refused_calls == 16


def test_what_is_no_block_counts_or_is_told(tmp_path: Path) -> None:
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
    assert scan.other[TREE].inodes == 2, "a folder, and a file on its way"
    assert context.report.unknown == [f"{name.rpartition('/')[0]}/notes.txt"]
    assert context.report.freed["orphan"].files == 1
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [Path(name).name, "notes.txt", ".tmp-host-new"]
    )
    store.close()


def test_trees_of_others_go_by_their_files_own_times(tmp_path: Path) -> None:
    store = PosixStore(tmp_path)
    folder = tmp_path / FOREIGN / "abc" / "de_g0"
    folder.mkdir(parents=True)
    for name, read_s, written_s in (("aa.bin", 50, 10), ("bb.bin", 10, 20)):
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (read_s, written_s))
    scan = scan_shard(Scene().context(store), "a", [StoreTree(FOREIGN, is_foreign=True)])
    assert scan.tables[FOREIGN].recent.tolist() == [50, 20]
    store.close()
