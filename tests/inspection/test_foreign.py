"""Recognition and counts of other systems' trees."""

import os

import pytest

from kvtier.inspection.folder_view import FolderView
from kvtier.inspection.foreign import find_foreign, survey_tree
from kvtier.inspection.survey import ForeignTree
from tests.inspection.stores import StoreFolder, keys

VLLM = {"model_name": "meta/llama", "tokens_per_hash": 16, "blocks_per_file": 4, "tp_size": 2}
LLMD = {"model_name": "meta/llama", "hash_block_size": 16, "gpu_blocks_per_file": 4}


def trees(store: StoreFolder) -> list[ForeignTree]:
    folder = FolderView(store.path)
    try:
        return [
            survey_tree(folder, base, tops, lambda name, error: None, lambda name: None)
            for base, tops in find_foreign(folder).items()
        ]
    finally:
        folder.close()


@pytest.mark.parametrize(("fields", "system"), [(VLLM, "vLLM fs"), (LLMD, "llm-d FS")])
def test_survey_tree_counts_the_files_of_all_ranks(
    store: StoreFolder, fields: dict, system: str
) -> None:
    base = store.plant_tree(fields, ranks=2, files=3)
    (tree,) = trees(store)
    assert (tree.name, tree.system, tree.config, tree.mistake) == (base, system, fields, None)
    assert (tree.ranks, tree.groups, tree.others) == ([0, 1], [0], 0)
    assert (tree.files.files, tree.files.nominal_bytes) == (6, 600)


def test_temporary_files_of_a_tree_are_not_blocks(store: StoreFolder) -> None:
    base = store.plant_tree(VLLM)
    file = next((store.path / f"{base}_r0").glob("*/*/*.bin"))
    file.with_name(f"{file.name}_123.tmp").touch()
    os.mkfifo(file.with_name("00.bin"))
    (tree,) = trees(store)
    assert (tree.files.files, tree.others) == (3, 2)


@pytest.mark.parametrize("content", [None, b"{", b"[]", b'{"model_name": "x"}'])
def test_config_that_does_not_match_is_reported(store: StoreFolder, content: bytes | None) -> None:
    config = store.path / store.plant_tree(VLLM) / "config.json"
    config.unlink()
    if content is not None:
        config.write_bytes(content)
    (tree,) = trees(store)
    assert tree.mistake is not None
    assert tree.system == "vLLM fs or llm-d FS"
    assert tree.files.files == 3


def test_other_folders_are_not_taken_for_trees(store: StoreFolder) -> None:
    store.fill(keys(4))
    store.plant("backup_0123456789ab/readme")
    store.plant("backup_0123456789ab_r0/readme")
    store.plant("model_0123456789/config.json")
    assert trees(store) == []
