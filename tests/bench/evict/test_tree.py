from pathlib import Path

import numpy as np
import pytest

from kvtier.evictor.journals import read_journals
from kvtier.evictor.layouts import StoreTree, shard_of
from kvtier.tiers.shared.format import segment_name
from kvtier.tiers.shared.posix import PosixStore
from kvtier_bench.evict.pattern import Pattern
from kvtier_bench.evict.tree import FILE_BYTES, SPACE, FileTree, key_of

FILES = 1500


@pytest.fixture
def tree(tmp_path: Path) -> FileTree:
    made = FileTree(tmp_path / "tree", FILES)
    made.root.mkdir()
    made.build(Pattern(FILES, 1).history(10.0), lambda _done: None)
    return made


def path_of(tree: FileTree, number: int) -> Path:
    return tree.root / tree.folder / segment_name(key_of(number))


def test_files_of_a_tree_have_inodes_of_their_own_and_verify(tree: FileTree) -> None:
    stats = [path_of(tree, number).stat() for number in range(FILES)]
    assert len({stat.st_ino for stat in stats}) == FILES
    assert {(stat.st_size, stat.st_nlink) for stat in stats} == {(FILE_BYTES, 1)}
    assert tree.left().all()
    assert tree.damaged(np.arange(FILES)) == 0


def test_missing_or_damaged_files_are_found(tree: FileTree) -> None:
    path_of(tree, 3).unlink()
    raw = bytearray(path_of(tree, 4).read_bytes())
    raw[150] ^= 1
    path_of(tree, 4).write_bytes(raw)
    assert np.flatnonzero(~tree.left()).tolist() == [3]
    assert tree.damaged(np.arange(FILES)) == 2


def test_journals_and_access_times_agree(tree: FileTree) -> None:
    store = PosixStore(tree.root)
    journals = read_journals(store, StoreTree(tree.folder, is_foreign=False))
    store.close()
    compared = 0
    for number in range(FILES):
        key = key_of(number)
        use = journals.of(shard_of(key)).get(key)
        stat = path_of(tree, number).stat()
        if use is None:
            assert stat.st_atime == stat.st_mtime
        else:
            assert use.last_s == pytest.approx(stat.st_atime, abs=5)
            compared += 1
    assert compared > FILES // 4


def test_folders_contain_the_given_number_of_files(tree: FileTree) -> None:
    chosen = tree.folders(50)
    held = sum(len(list(folder.iterdir())) for folder in chosen)
    assert 50 <= held <= 53
    assert chosen == sorted(chosen)
    assert SPACE.model in str(chosen[0])
