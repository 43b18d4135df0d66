"""Names of blocks in trees, and the choice of a tree."""

from pathlib import Path

import pytest

from kvtier.blocks.key import BlockKey
from kvtier.conversion.trees import FoundTree, choose_tree, parse_block_name, read_tree, share_done
from kvtier.errors import InvalidSettings
from kvtier.inspection.folder_view import FolderView
from tests.conversion.foreign import TreeFolder, chain, llmd_fields, vllm_fields


def test_block_name_and_key_round_trip() -> None:
    tree = FoundTree("m_0123456789ab", read_tree(vllm_fields()))
    key = BlockKey(bytes.fromhex("abcdef0123") + (7).to_bytes(4))
    name = tree.block_name(key, rank=2)
    assert name == "m_0123456789ab_r2/abc/de_g7/abcdef0123.bin"
    assert parse_block_name(name.partition("/")[2]) == key
    assert share_done(name) == 0xABC / 4096
    assert share_done("m/config.json") == 0


@pytest.mark.parametrize(
    "name",
    [
        "abc/de_g0/abcdef.bin_1.tmp",
        "abc/de_g0/abcdeff.bin",
        "abc/de_g0/abcfff.bin",
        "abc/de_g00/abcdef.bin",
        "abc/de_g9999999999/abcdef.bin",
        "abc/de_g0/ABCDEF.bin",
        "abc/de/abcdef.bin",
        "abc/de_g0/abcd.bin",
        f"abc/de_g0/abcdef{'00' * 60}.bin",
    ],
)
def test_parse_block_name_refuses_other_names(name: str) -> None:
    assert parse_block_name(name) is None


def choose(root: Path, wanted: str | None = None) -> FoundTree:
    folder = FolderView(root)
    try:
        return choose_tree(folder, wanted)
    finally:
        folder.close()


def test_choose_tree_takes_the_only_or_the_named_tree(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="holds no tree"):
        choose(tmp_path)
    first = TreeFolder(tmp_path, vllm_fields()).fill(chain(2))
    assert choose(tmp_path).base == first.base
    second = TreeFolder(tmp_path, llmd_fields())
    with pytest.raises(InvalidSettings, match="several trees") as caught:
        choose(tmp_path)
    assert first.base in str(caught.value)
    assert second.base in str(caught.value)
    assert choose(tmp_path, second.base).is_by_worker
    assert not choose(tmp_path, first.base).is_by_worker
    with pytest.raises(InvalidSettings, match="no tree x"):
        choose(tmp_path, "x")


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"{", "cannot be read"), (b"{}", "does not match the folder's name"), (None, "missing")],
)
def test_choose_tree_refuses_a_changed_config(
    tmp_path: Path, content: bytes | None, expected: str
) -> None:
    tree = TreeFolder(tmp_path, vllm_fields()).fill(chain(1))
    tree.config.unlink()
    if content is not None:
        tree.config.write_bytes(content)
    with pytest.raises(InvalidSettings, match=expected):
        choose(tmp_path, tree.base)


def test_tree_walk_yields_each_block_once(tmp_path: Path) -> None:
    keys = chain(9)
    tree = TreeFolder(tmp_path, vllm_fields()).fill(keys)
    stranger = tree.file(keys[0]).with_suffix(".bin_1.tmp")
    stranger.touch()
    folder = FolderView(tmp_path)
    found = list(choose_tree(folder, None).walk(folder, lambda _name, _error: None))
    folder.close()
    assert sorted(key for _, key in found if key is not None) == sorted(keys)
    assert [entry.name for entry, key in found if key is None] == [
        str(stranger.relative_to(tmp_path))
    ]


def test_block_names_equal_those_of_vllm(tmp_path: Path) -> None:
    mappers = pytest.importorskip("vllm.v1.kv_offload.file_mapper")
    for is_agnostic in (True, False):
        fields = vllm_fields()
        engine = fields.pop("inference_engine")
        mapper = mappers.FileMapper(
            root_dir=str(tmp_path),
            rank=0,
            inference_engine=engine,
            parallel_agnostic=is_agnostic,
            **fields,
        )
        tree = TreeFolder(tmp_path, mapper.get_run_config())
        found = choose(tmp_path, tree.base)
        assert str(tree.config) == mapper.get_config_file_path()
        assert found.tree.records_workers != is_agnostic
        for key in chain(20):
            assert str(tmp_path / found.block_name(key)) == mapper.get_file_name(key)
