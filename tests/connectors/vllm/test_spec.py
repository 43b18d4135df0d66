"""The spec: settings from vLLM's configuration, divided among data-parallel replicas."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("vllm")

import msgspec
from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)

from kvtier.connectors.vllm.manager import KVTierManager
from kvtier.connectors.vllm.spec import KVTier, replica_share
from kvtier.errors import InvalidSettings
from kvtier.settings import DiskSettings, RamSettings, Settings
from tests.cases import case


@pytest.fixture(autouse=True)
def log_stays_ours() -> Iterator[None]:
    """Restore kvtier's logging, which a spec changes, for the other tests."""
    log = logging.getLogger("kvtier")
    before = list(log.handlers), log.level, log.propagate
    yield
    log.handlers, log.level, log.propagate = before


def configuration(
    extra: dict[str, object], replicas: int = 1, replica: int = 0
) -> OffloadingConfig:
    return OffloadingConfig(
        groups=(OffloadingGroupConfig(tokens_per_block=16, layer_names=("l0",), group_id=0),),
        worker_kv_bytes_per_block=4096,
        enable_kv_cache_events=False,
        extra_config=extra,
        engine_id="e",
        model=OffloadingModelConfig(name="model", dtype="float32"),
        cache=OffloadingCacheConfig(tokens_per_hash=16, blocks_per_chunk=1),
        parallel=OffloadingParallelConfig(
            rank=0,
            world_size=1,
            tp_size=1,
            pp_size=1,
            pcp_size=1,
            dcp_size=1,
            data_parallel_index=replica,
            data_parallel_size=replicas,
            data_parallel_rank_local=None,
            is_parallelism_agnostic=False,
        ),
    )


def test_get_manager_builds_one_manager(tmp_path: Path) -> None:
    extra = {"spec_name": "KVTier", "ram": "1MiB", "disk": f"{tmp_path}/cache=16MiB"}
    spec = KVTier(configuration(extra))
    manager = spec.get_manager()
    assert isinstance(manager, KVTierManager)
    assert spec.get_manager() is manager
    manager.shutdown()


def test_spec_accepts_vllms_own_keys() -> None:
    manager = KVTier(configuration({"cpu_bytes_to_use": 1 << 20, "eviction_policy": "arc"}))
    built = manager.get_manager()
    built.shutdown()
    assert isinstance(built, KVTierManager)


def test_wrong_setting_raises_error_that_names_it() -> None:
    cases: list[tuple[dict[str, object], str]] = [
        ({}, "ram.capacity"),
        ({"ram": "lots"}, "ram"),
        ({"ram": "1MiB", "dsk": "/x=1GiB"}, "dsk"),
        ({"ram": "4KiB"}, "ram.capacity"),
        ({"ram": "900TiB"}, "ram.capacity"),
    ]
    for extra, named in cases:
        with case(extra), pytest.raises(InvalidSettings, match=named):
            KVTier(configuration(extra)).get_manager()


def test_log_uses_the_engines_handlers() -> None:
    logging.getLogger("kvtier").handlers = []
    KVTier(configuration({"ram": "1MiB"}))
    assert logging.getLogger("kvtier").handlers == logging.getLogger("vllm").handlers


def test_replica_share_divides_capacities_and_separates_folders(tmp_path: Path) -> None:
    settings = Settings(
        ram=RamSettings(capacity=80), disk=DiskSettings(path=str(tmp_path), capacity=160)
    )
    shared = [replica_share(settings, configuration({}, 8, replica)) for replica in range(8)]
    assert {part.ram.capacity for part in shared} == {10}
    folders = [part.disk.path for part in shared if part.disk]
    assert len(set(folders)) == 8
    assert all(part.disk and part.disk.capacity == 20 for part in shared)
    alone = replica_share(settings, configuration({}))
    assert msgspec.to_builtins(alone) == msgspec.to_builtins(settings)
