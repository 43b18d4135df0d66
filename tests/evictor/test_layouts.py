import pytest

from kvtier.blocks.key import BlockKey
from kvtier.evictor.layouts import SHARDS, Kind, Tree, key_of, kind_outside, recognise, shard_of
from kvtier.testing.samples import sample_space
from kvtier.tiers.shared.format import segment_name, space_folder
from tests.evictor import scenes

OWN = Tree(scenes.TREE, is_foreign=False)
FOREIGN = Tree(scenes.FOREIGN, is_foreign=True)
HASH = "ab" * 32


def test_folders_are_recognised_by_their_names() -> None:
    assert recognise(space_folder(sample_space())) == Tree(space_folder(sample_space()), False)
    assert recognise("meta-llama_Llama-3.1-8B_0123456789ab") is not None
    assert recognise(scenes.FOREIGN) == FOREIGN
    for top in ("leases", "data", "lost+found", "model-0123", "model_0123456789ab_rank0", "x_0123"):
        assert recognise(top) is None, top


@pytest.mark.parametrize(
    ("below", "kind"),
    [
        (segment_name(BlockKey(bytes(36))), Kind.BLOCK),
        ("blocks/000/" + "0" * 8 + ".kvt", Kind.UNKNOWN),
        ("blocks/000/" + "0" * 11 + ".kvt", Kind.UNKNOWN),
        ("blocks/001/" + "0" * 72 + ".kvt", Kind.UNKNOWN),
        ("blocks/000/" + "0" * 72 + ".kvt.bak", Kind.UNKNOWN),
        ("blocks/000/.tmp-host-1-2-3", Kind.TEMPORARY),
        ("manifest.json", Kind.KEPT),
        ("access/host-1-2-00000001.log", Kind.KEPT),
        ("access/summary-f.0000000012.bin", Kind.KEPT),
        ("quarantine/00-ab.kvt", Kind.KEPT),
        ("notes.txt", Kind.UNKNOWN),
        ("access/deep/er.log", Kind.UNKNOWN),
    ],
)
def test_names_in_a_tree_of_ours(below: str, kind: Kind) -> None:
    assert OWN.kind(f"{OWN.name}/{below}") is kind


@pytest.mark.parametrize(
    ("below", "kind"),
    [
        (f"abc/de_g0/{HASH}.bin", Kind.BLOCK),
        (f"abc/de_g12/{HASH}.bin", Kind.BLOCK),
        (f"abc/de/{HASH}.bin", Kind.UNKNOWN),
        (f"abc/de_g0/{HASH}.bin_123456789.tmp", Kind.TEMPORARY),
        ("abc/de_g0/.o_direct_probe_1234.tmp", Kind.TEMPORARY),
        ("config.json", Kind.KEPT),
        ("abc/de_g0/photo.jpg", Kind.UNKNOWN),
    ],
)
def test_names_in_a_tree_of_others(below: str, kind: Kind) -> None:
    assert FOREIGN.kind(f"{FOREIGN.name}/{below}") is kind


def test_packed_names_come_back() -> None:
    for number in range(50):
        assert OWN.unpack(OWN.pack(scenes.block(number))) == scenes.block(number)
        assert OWN.pack(scenes.block(number)) == scenes.key_of(number)
    name = f"{FOREIGN.name}/abc/de_g0/{HASH}.bin"
    assert FOREIGN.unpack(FOREIGN.pack(name)) == name


def test_every_block_is_in_the_shard_of_its_name() -> None:
    for number in range(50):
        key = key_of_below(number)
        assert scenes.block(number).startswith(OWN.shard(shard_of(key)))
    assert len(SHARDS) == 16


def key_of_below(number: int) -> bytes:
    key = key_of(scenes.below(number))
    assert key == scenes.key_of(number)
    return key


def test_outside_of_trees() -> None:
    assert kind_outside("leases/0.0000000001") is Kind.KEPT
    assert kind_outside("leases") is Kind.UNKNOWN
    assert kind_outside(".kvtier-fsck.json") is Kind.KEPT
    assert kind_outside(".tmp-x-1") is kind_outside("leases/.tmp-x-1") is Kind.TEMPORARY
    assert kind_outside("data/.tmp-x-1") is Kind.UNKNOWN, "another program's"
    assert kind_outside("data/file") is Kind.UNKNOWN
