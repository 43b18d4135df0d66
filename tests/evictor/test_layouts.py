import pytest

from kvtier.blocks.key import BlockKey
from kvtier.evictor.layouts import (
    SHARDS,
    FileTreatment,
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
        (segment_name(BlockKey(bytes(36))), FileTreatment.BLOCK),
        ("blocks/000/" + "0" * 8 + ".kvt", FileTreatment.UNKNOWN),
        ("blocks/000/" + "0" * 11 + ".kvt", FileTreatment.UNKNOWN),
        ("blocks/001/" + "0" * 72 + ".kvt", FileTreatment.UNKNOWN),
        ("blocks/000/" + "0" * 72 + ".kvt.bak", FileTreatment.UNKNOWN),
        ("blocks/000/.tmp-host-1-2-3", FileTreatment.TEMPORARY),
        ("manifest.json", FileTreatment.KEPT),
        ("access/host-1-2-00000001.log", FileTreatment.KEPT),
        ("access/summary-f.0000000012.bin", FileTreatment.KEPT),
        ("quarantine/00-ab.kvt", FileTreatment.KEPT),
        ("notes.txt", FileTreatment.UNKNOWN),
        ("access/deep/er.log", FileTreatment.UNKNOWN),
    ],
)
def test_kind_of_names_in_own_tree(below: str, kind: FileTreatment) -> None:
    assert OWN.kind(f"{OWN.name}/{below}") is kind


@pytest.mark.parametrize(
    ("below", "kind"),
    [
        (f"abc/de_g0/{HASH}.bin", FileTreatment.BLOCK),
        (f"abc/de_g12/{HASH}.bin", FileTreatment.BLOCK),
        (f"abc/de/{HASH}.bin", FileTreatment.UNKNOWN),
        (f"abc/de_g0/{HASH}.bin_123456789.tmp", FileTreatment.TEMPORARY),
        ("abc/de_g0/.o_direct_probe_1234.tmp", FileTreatment.TEMPORARY),
        ("config.json", FileTreatment.KEPT),
        ("abc/de_g0/photo.jpg", FileTreatment.UNKNOWN),
    ],
)
def test_kind_of_names_in_foreign_tree(below: str, kind: FileTreatment) -> None:
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
    assert kind_outside("leases/0.0000000001") is FileTreatment.KEPT
    assert kind_outside("leases") is FileTreatment.UNKNOWN
    assert kind_outside(".kvtier-fsck.json") is FileTreatment.KEPT
    assert kind_outside(".tmp-x-1") is kind_outside("leases/.tmp-x-1") is FileTreatment.TEMPORARY
    assert kind_outside("data/.tmp-x-1") is FileTreatment.UNKNOWN, "it belongs to another program"
    assert kind_outside("data/file") is FileTreatment.UNKNOWN
