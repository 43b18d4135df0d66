import pytest

from kvtier.blocks.key import BlockKey
from kvtier.evictor.layouts import (
    SHARDS,
    FileKind,
    StoreTree,
    key_of,
    kind_outside,
    shard_of,
    tree_at,
)
from kvtier.testing.samples import sample_space
from kvtier.tiers.shared.format import segment_name, space_folder
from tests.evictor import scenes

OWN = StoreTree(scenes.TREE, is_foreign=False)
FOREIGN = StoreTree(scenes.FOREIGN, is_foreign=True)
HASH = "ab" * 32


def test_tree_at_recognizes_folder_names() -> None:
    assert tree_at(space_folder(sample_space())) == StoreTree(space_folder(sample_space()), False)
    assert tree_at("meta-llama_Llama-3.1-8B_0123456789ab") is not None
    assert tree_at(scenes.FOREIGN) == FOREIGN
    for top in ("leases", "data", "lost+found", "model-0123", "model_0123456789ab_rank0", "x_0123"):
        assert tree_at(top) is None, top


@pytest.mark.parametrize(
    ("below", "kind"),
    [
        (segment_name(BlockKey(bytes(36))), FileKind.BLOCK),
        ("blocks/000/" + "0" * 8 + ".kvt", FileKind.UNKNOWN),
        ("blocks/000/" + "0" * 11 + ".kvt", FileKind.UNKNOWN),
        ("blocks/001/" + "0" * 72 + ".kvt", FileKind.UNKNOWN),
        ("blocks/000/" + "0" * 72 + ".kvt.bak", FileKind.UNKNOWN),
        ("blocks/000/.tmp-host-1-2-3", FileKind.TEMPORARY),
        ("manifest.json", FileKind.KEPT),
        ("access/host-1-2-00000001.log", FileKind.KEPT),
        ("access/summary-f.0000000012.bin", FileKind.KEPT),
        ("quarantine/00-ab.kvt", FileKind.KEPT),
        ("notes.txt", FileKind.UNKNOWN),
        ("access/deep/er.log", FileKind.UNKNOWN),
    ],
)
def test_kind_of_names_in_own_tree(below: str, kind: FileKind) -> None:
    assert OWN.kind(f"{OWN.name}/{below}") is kind


@pytest.mark.parametrize(
    ("below", "kind"),
    [
        (f"abc/de_g0/{HASH}.bin", FileKind.BLOCK),
        (f"abc/de_g12/{HASH}.bin", FileKind.BLOCK),
        (f"abc/de/{HASH}.bin", FileKind.UNKNOWN),
        (f"abc/de_g0/{HASH}.bin_123456789.tmp", FileKind.TEMPORARY),
        ("abc/de_g0/.o_direct_probe_1234.tmp", FileKind.TEMPORARY),
        ("config.json", FileKind.KEPT),
        ("abc/de_g0/photo.jpg", FileKind.UNKNOWN),
    ],
)
def test_kind_of_names_in_foreign_tree(below: str, kind: FileKind) -> None:
    assert FOREIGN.kind(f"{FOREIGN.name}/{below}") is kind


def test_packed_names_round_trip() -> None:
    for number in range(50):
        assert OWN.unpack(OWN.pack(scenes.block(number))) == scenes.block(number)
        assert OWN.pack(scenes.block(number)) == scenes.key_of(number)
    name = f"{FOREIGN.name}/abc/de_g0/{HASH}.bin"
    assert FOREIGN.unpack(FOREIGN.pack(name)) == name


def test_shard_of_key_matches_name_prefix() -> None:
    for number in range(50):
        key = key_of_below(number)
        assert scenes.block(number).startswith(OWN.shard(shard_of(key)))
    assert len(SHARDS) == 16


def key_of_below(number: int) -> bytes:
    key = key_of(scenes.below(number))
    assert key == scenes.key_of(number)
    return key


def test_kind_outside_of_trees() -> None:
    assert kind_outside("leases/0.0000000001") is FileKind.KEPT
    assert kind_outside("leases") is FileKind.UNKNOWN
    assert kind_outside(".kvtier-fsck.json") is FileKind.KEPT
    assert kind_outside(".tmp-x-1") is kind_outside("leases/.tmp-x-1") is FileKind.TEMPORARY
    assert kind_outside("data/.tmp-x-1") is FileKind.UNKNOWN, "it belongs to another program"
    assert kind_outside("data/file") is FileKind.UNKNOWN
