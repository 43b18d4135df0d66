import os
from pathlib import Path

from kvtier.evictor.layouts import LEASES, tree_at
from kvtier.evictor.scan import sweep_folders, sweep_rest
from kvtier.tiers.shared.posix import PosixStore
from tests.evictor.scenes import FOREIGN, START_S, TREE, Scene, block

TREES = [tree for tree in map(tree_at, (FOREIGN, TREE)) if tree is not None]


def touch(root: Path, name: str, age_s: float = 0.0, content: bytes = b"x") -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (START_S - age_s, START_S - age_s))


def names(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_sweep_rest_removes_orphans_and_reports_unknown(tmp_path: Path) -> None:
    store = PosixStore(tmp_path)
    kept = [block(1), f"{TREE}/manifest.json", f"{TREE}/access/x-1.log", f"{LEASES}/0.0000000001"]
    kept += [f"{LEASES}/beat-{16 * 'f'}", f"{FOREIGN}/abc/de_g0/aa.bin", ".tmp-host-young"]
    unknown = ["data/big.bin", "data/.tmp-x", "readme", f"{TREE}/blocks/README"]
    gone = [
        ".tmp-host-old",
        f"{TREE}/.tmp-host-old",
        f"{LEASES}/beat-{16 * 'a'}",
        "now-" + 16 * "a",
    ]
    for name in [*kept, *unknown, f"{TREE}/blocks/0"]:
        touch(tmp_path, name)
    touch(tmp_path, "data/.tmp-x", age_s=10**6)
    touch(tmp_path, f"{LEASES}/1.0000000001", age_s=10**6)
    for name in gone:
        touch(tmp_path, name, age_s=4000)
    context = Scene().context(store)
    sizes = sweep_rest(context, TREES, set())
    assert sorted(context.report.unknown) == sorted(unknown), "files of shards are not listed"
    stay = [*kept, *unknown, f"{TREE}/blocks/0", f"{LEASES}/1.0000000001"]
    assert names(tmp_path) == sorted(stay)
    assert context.report.freed["orphan"].files == len(gone)
    inodes = {top: amount.inodes for top, amount in sizes.items()}
    assert inodes == {".tmp-host-young": 1, TREE: 2, LEASES: 3}
    store.close()


def test_sweep_rest_skips_excluded_folders(tmp_path: Path) -> None:
    store = PosixStore(tmp_path)
    touch(tmp_path, f"{TREE}/.tmp-host-old", age_s=10**6)
    touch(tmp_path, f"{TREE}/what")
    context = Scene().context(store, delete_unknown=True)
    sweep_rest(context, [], {TREE})
    assert names(tmp_path) == [f"{TREE}/.tmp-host-old", f"{TREE}/what"]
    store.close()


def test_sweep_rest_deletes_unknown_files_on_request(tmp_path: Path) -> None:
    store = PosixStore(tmp_path)
    for name in ("readme", "data/x", f"{TREE}/manifest.json"):
        touch(tmp_path, name, age_s=4000)
    touch(tmp_path, "data/being-written")
    sweep_rest(Scene().context(store, delete_unknown=True, dry_run=True), TREES, set())
    assert len(names(tmp_path)) == 4
    sweep_rest(Scene().context(store, delete_unknown=True), TREES, set())
    assert names(tmp_path) == ["data/being-written", f"{TREE}/manifest.json"]
    store.close()


def test_sweep_folders_removes_empty_folders(tmp_path: Path) -> None:
    store = PosixStore(tmp_path)
    for folder in (f"{TREE}/blocks/abc", f"{TREE}/blocks/abd", f"{FOREIGN}/abc/de_g0", "data/e"):
        (tmp_path / folder).mkdir(parents=True)
    touch(tmp_path, f"{TREE}/blocks/abd/x")
    sweep_folders(Scene().context(store, dry_run=True), TREES)
    assert (tmp_path / TREE / "blocks/abc").exists()
    context = Scene().context(store)
    sweep_folders(context, TREES)
    assert context.report.folders_removed == 1
    assert (tmp_path / TREE / "blocks/abd/x").exists()
    assert (tmp_path / FOREIGN / "abc/de_g0").exists(), "foreign folders stay by default"
    sweep_folders(Scene().context(store, sweep_foreign_folders=True), TREES)
    assert not (tmp_path / FOREIGN / "abc").exists()
    assert (tmp_path / "data/e").exists()
    store.close()


def test_sweep_folders_of_store_without_folders() -> None:
    context = Scene().context()
    sweep_folders(context, TREES)
    assert context.report.folders_removed == 0
