import dataclasses
import itertools
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm.v1.kv_offload.config")

from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)

from kvtier.connectors.vllm.arrangement import choose_arrangement
from kvtier.errors import InvalidSettings
from tests.cases import case

HEADS, HEAD_SIZE, TOKENS, LAYERS = 8, 64, 16, ("l0", "l1", "l2")
ONE_HEAD = len(LAYERS) * TOKENS * 2 * HEAD_SIZE * 2


def model(**changes: Any) -> SimpleNamespace:
    facts = {"use_mla": False, "heads": HEADS, **changes}
    return SimpleNamespace(
        model_config=SimpleNamespace(
            use_mla=facts["use_mla"],
            get_total_num_kv_heads=lambda: facts["heads"],
            get_head_size=lambda: HEAD_SIZE,
        )
    )


def config(tp_size: int = 2, asked: object = None, **changes: Any) -> OffloadingConfig:
    """Return vLLM's configuration for plain attention, with `asked` as `canonical_layout`."""
    parallel = {"is_parallelism_agnostic": True, "pp_size": 1, "pcp_size": 1, "dcp_size": 1}
    parallel |= {name: changes.pop(name) for name in list(changes) if name in parallel}
    plain = OffloadingConfig(
        groups=(OffloadingGroupConfig(TOKENS, LAYERS, 0),),
        worker_kv_bytes_per_block=ONE_HEAD * HEADS // tp_size,
        enable_kv_cache_events=False,
        extra_config={} if asked is None else {"canonical_layout": asked},
        engine_id="engine",
        model=OffloadingModelConfig("model", "bfloat16"),
        cache=OffloadingCacheConfig(TOKENS, 3),
        parallel=OffloadingParallelConfig(
            rank=0,
            world_size=tp_size * parallel["pp_size"] * parallel["pcp_size"],
            tp_size=tp_size,
            data_parallel_index=0,
            data_parallel_size=1,
            data_parallel_rank_local=None,
            **parallel,
        ),
        canonical_layout=bool(asked),
        kv_cache_layout="LBNHC",
    )
    return dataclasses.replace(plain, **changes)


def test_canonical_slot_is_the_same_at_any_tp_size() -> None:
    for tp_size, asked in itertools.product([1, 2, 4, 8], [None, True]):
        with case(tp_size, asked):
            found = choose_arrangement(config(tp_size, asked), model())
            assert found.is_canonical
            assert found.payload_bytes == found.slice_bytes == 3 * HEADS * ONE_HEAD


OBSTACLES: list[tuple[dict[str, Any], str]] = [
    ({"asked": False}, "canonical_layout is false"),
    ({"pp_size": 2}, "pipeline"),
    ({"pcp_size": 2}, "context parallelism"),
    ({"dcp_size": 2}, "context parallelism"),
    ({"kv_cache_layout": "BHLNC"}, "layout BHLNC"),
    ({"kv_cache_layout": None}, "layout None"),
    ({"is_parallelism_agnostic": False}, '"canonical_layout": true'),
    ({"worker_kv_bytes_per_block": ONE_HEAD * 5}, "equal heads"),
    ({"model": OffloadingModelConfig("model", "fp8")}, "equal heads"),
    ({"model": OffloadingModelConfig("model", "a new one")}, "equal heads"),
    ({"tp_size": 3, "worker_kv_bytes_per_block": 2 * ONE_HEAD}, "equal heads"),
]


def test_per_rank_slots_name_the_obstacle() -> None:
    for changes, obstacle in OBSTACLES:
        with case(changes):
            wanted = config(**changes)
            found = choose_arrangement(wanted, model())
            assert obstacle in (found.obstacle or "")
            own_bytes = 3 * wanted.worker_kv_bytes_per_block
            assert found.slice_bytes == own_bytes
            assert found.payload_bytes == own_bytes * wanted.parallel.world_size


def test_engine_configuration_is_needed_for_several_ranks_only() -> None:
    assert "was not found" in (choose_arrangement(config(2), None).obstacle or "")
    assert choose_arrangement(config(1), None).is_canonical


def test_single_rank_is_canonical_whatever_its_size() -> None:
    assert choose_arrangement(config(1, worker_kv_bytes_per_block=5), model()).payload_bytes == 15


@pytest.mark.parametrize(
    ("changes", "facts", "copies"),
    [
        ({"tp_size": 4}, {"heads": 2}, 2),
        ({"tp_size": 4, "replicated_layout": True}, {"use_mla": True, "heads": 1}, 4),
        ({"tp_size": 1}, {"use_mla": True}, 1),
    ],
)
def test_canonical_slot_holds_replicated_kv_once(
    changes: dict[str, Any], facts: dict[str, Any], copies: int
) -> None:
    wanted = config(asked=True, worker_kv_bytes_per_block=100, **changes)
    found = choose_arrangement(wanted, model(**facts))
    assert found.payload_bytes == 3 * 100 * wanted.parallel.world_size // copies


@pytest.mark.parametrize(
    ("changes", "facts", "message"),
    [
        ({"is_parallelism_agnostic": False}, {}, "some layer"),
        ({"kv_cache_layout": "BLHNC"}, {}, "layout BLHNC"),
        ({}, {"use_mla": True}, "latent attention"),
    ],
)
def test_required_canonical_layout_that_is_impossible_raises(
    changes: dict[str, Any], facts: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidSettings, match=rf"canonical_layout: .*{message}.*remove it"):
        choose_arrangement(config(asked=True, **changes), model(**facts))


def test_option_other_than_true_or_false_is_rejected() -> None:
    for asked in ("false", 1, "auto"):
        with case(asked), pytest.raises(InvalidSettings, match="neither true nor false"):
            choose_arrangement(config(asked=asked), model())


def test_model_without_kv_cache_is_rejected() -> None:
    with pytest.raises(InvalidSettings, match="no KV cache bytes"):
        choose_arrangement(config(worker_kv_bytes_per_block=0), model())
