"""The comparison of a tree with a key space, and the fields that a tree does not record."""

from typing import Any

import msgspec
import pytest

from kvtier.blocks.key import GroupShape
from kvtier.conversion.trees import LLMD, VLLM, layers_digest, mismatches, read_tree, unproven
from kvtier.errors import InvalidSettings
from tests.conversion.foreign import LAYERS, SPACE, llmd_fields, vllm_fields

COMMIT = "0123456789" * 4


def test_both_systems_match_their_key_space() -> None:
    for fields, system in ((vllm_fields(), VLLM), (llmd_fields(), LLMD)):
        tree = read_tree(fields)
        assert tree.system == system
        assert mismatches(tree, SPACE) == []


def test_canonical_slot_matches_a_tree_of_one_worker() -> None:
    space = msgspec.structs.replace(SPACE, layout="LBHNC canonical")
    assert mismatches(read_tree(vllm_fields(parallel_agnostic=False)), space) == []
    two = read_tree(vllm_fields(parallel_agnostic=False, tp_size=2))
    assert "tp_size: 2 != 1" in mismatches(two, space)
    assert "dcp_size: 2 != 1" in mismatches(read_tree(vllm_fields(dcp_size=2)), space)


def test_layers_digest_equals_that_of_the_engine() -> None:
    identity = pytest.importorskip("kvtier.connectors.vllm.identity")
    assert layers_digest(LAYERS) == identity._digest(tuple(LAYERS))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model_name": "meta/other"}, "model_name"),
        ({"model_name": f"/hub/models--meta--llama/snapshots/{COMMIT}"}, "model_name"),
        ({"dtype": "float16"}, "dtype"),
        ({"tokens_per_hash": 32}, "tokens_per_hash"),
        ({"blocks_per_file": 2}, "blocks_per_file"),
        ({"pcp_size": 2}, "pcp_size"),
        ({"dcp_size": 2}, "dcp_size"),
        ({"inference_engine": "other"}, "inference_engine"),
        ({"replicated_layout": True}, "replicated_layout"),
        ({"canonical_format": "v1-nhd"}, "canonical_format"),
        ({"parallel_agnostic": False, "tp_size": 2}, "tp_size"),
        ({"parallel_agnostic": False, "pp_size": 2}, "pp_size"),
        ({"kv_cache_groups": []}, "kv_cache_groups"),
        ({"kv_cache_groups": vllm_fields()["kv_cache_groups"] * 2}, "kv_cache_groups"),
        (
            {"kv_cache_groups": [{"tokens_per_block": 32, "layer_names": LAYERS}]},
            "kv_cache_groups[0].tokens_per_block",
        ),
        (
            {"kv_cache_groups": [{"tokens_per_block": 16, "layer_names": LAYERS[::-1]}]},
            "kv_cache_groups[0].layer_names (digest)",
        ),
    ],
)
def test_mismatches_names_each_difference(changes: dict[str, Any], field: str) -> None:
    found = mismatches(read_tree(vllm_fields(**changes)), SPACE)
    assert field in [each.partition(":")[0] for each in found]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"layout": "NHD canonical pcp1 dcp1"}, "layout"),
        ({"engine": "other 1"}, "inference_engine"),
        ({"blocks_per_chunk": 2}, "blocks_per_file"),
        ({"groups": (GroupShape(tokens_per_block=16, layers="x"),) * 2}, "kv_cache_groups"),
        ({"world_size": 3}, "world_size"),
        ({"world_size": 0}, "world_size"),
        ({"world_size": 2, "tp_size": 2}, "tp_size"),
    ],
)
def test_mismatches_for_key_spaces_that_no_tree_can_match(
    changes: dict[str, Any], field: str
) -> None:
    space = type(SPACE)(**{n: getattr(SPACE, n) for n in SPACE.__struct_fields__} | changes)
    found = mismatches(read_tree(llmd_fields()), space)
    assert field in [each.partition(":")[0] for each in found]


def test_path_in_hub_cache_proves_the_revision() -> None:
    space = type(SPACE)(
        **{n: getattr(SPACE, n) for n in SPACE.__struct_fields__} | {"revision": COMMIT}
    )
    tree = read_tree(vllm_fields(model_name=f"/hub/models--meta--llama/snapshots/{COMMIT}"))
    assert mismatches(tree, space) == []
    assert "revision" not in unproven(tree)


def test_unproven_lists_fields_that_the_tree_omits() -> None:
    always = {"engine", "weights", "layout", "hash_algorithm", "hash_seed", "isa", "revision"}
    assert set(unproven(read_tree(llmd_fields()))) == always
    assert set(unproven(read_tree(vllm_fields(parallel_agnostic=False)))) == always
    workers = {"tp_size", "pp_size", "world_size"}
    assert set(unproven(read_tree(vllm_fields()))) == always | workers


@pytest.mark.parametrize(
    "fields",
    [
        {},
        vllm_fields(swizzle="new"),
        vllm_fields(tp_size="1"),
        vllm_fields(kv_cache_groups=[1]),
        llmd_fields(kv_cache_groups=[1]),
        llmd_fields(kv_cache_groups=7),
    ],
)
def test_read_tree_refuses_an_unknown_config(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidSettings, match=r"config\.json is not a configuration"):
        read_tree(fields)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("blocks", "alike"), [([3], True), ([3, 1], False)], ids=["one block", "two blocks"]
)
def test_kvtier_block_equals_vllm_file_for_one_block_per_file(
    workers: int, blocks: list[int], alike: bool
) -> None:
    pytest.importorskip("vllm.v1.kv_offload.cpu.shared_offload_region")
    from tests.conversion import regions

    pages = [96, 160, 96]
    theirs = regions.theirs(pages, blocks, workers)
    assert (theirs == regions.ours(pages, blocks, workers)) == alike
