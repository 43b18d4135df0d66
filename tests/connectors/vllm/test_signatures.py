"""kvtier's classes accept every call that the supported engines make.

The signatures in `signatures/` were read from the engines' wheels (record_signatures.py), so
that both ends of the supported range are checked with only one of them installed, or none.
"""

import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from kvtier.connectors.vllm import versions
from tests.cases import case

FOLDER = Path(__file__).parent / "signatures"
RECORDED = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
BASE = "vllm.v1.kv_offload.base"
OURS = {
    "OffloadingWorker": ("kvtier.connectors.vllm.worker", "CopyWorker"),
    "OffloadingManager": ("kvtier.connectors.vllm.manager", "KVTierManager"),
    "OffloadingSpec": ("kvtier.connectors.vllm.spec", "KVTier"),
}
# The engine's fields that kvtier sets or reads.
USED_FIELDS = {
    BASE: {
        "TransferResult": {"job_id", "success", "transfer_size", "transfer_time"},
        "PrepareStoreOutput": {"keys_to_store", "store_spec", "evicted_keys"},
        "CanonicalKVCaches": {"tensors", "group_data_refs"},
        "CanonicalKVCacheTensor": {"tensor", "page_size_bytes"},
        "CanonicalKVCacheRef": {"tensor_idx", "page_size_bytes", "mapping"},
        "CanonicalPageMapping": {
            "canonical_page_size_bytes", "runs", "num_writers", "writer_index",
            "parallelism_agnostic",
        },
        "CopyRun": {
            "local_offset", "canonical_offset", "fragment_size", "num_fragments",
            "local_stride", "canonical_stride",
        },
        "OffloadingEvent": {"keys", "medium", "removed", "locality", "ownership"},
        "ScheduleEndContext": {"new_req_ids", "preempted_req_ids"},
    },
    "vllm.v1.kv_offload.config": {
        "OffloadingConfig": {
            "groups", "worker_kv_bytes_per_block", "enable_kv_cache_events", "extra_config",
            "model", "cache", "parallel", "kv_cache_layout", "canonical_layout",
            "replicated_layout",
        },
        "OffloadingGroupConfig": {"tokens_per_block", "layer_names", "group_id"},
        "OffloadingCacheConfig": {"tokens_per_hash", "blocks_per_chunk"},
        "OffloadingModelConfig": {"name", "dtype"},
        "OffloadingParallelConfig": {
            "rank", "world_size", "tp_size", "pp_size", "pcp_size", "dcp_size",
            "data_parallel_size", "data_parallel_index", "is_parallelism_agnostic",
        },
    },
}  # fmt: skip


def test_signatures_cover_both_ends_of_the_supported_range() -> None:
    assert set(RECORDED) == {"0.32", "0.33"}
    assert [versions.supported(version) for version in RECORDED] == [(0, 32), (0, 33)]


@pytest.mark.parametrize("version", RECORDED)
def test_classes_accept_recorded_calls(version: str) -> None:
    pytest.importorskip(BASE)
    for base in OURS:
        for name, recorded in RECORDED[version][BASE][base]["methods"].items():
            with case(base, name):
                check_call(base, name, recorded)


def check_call(base: str, name: str, recorded: dict[str, Any]) -> None:
    module, class_name = OURS[base]
    ours = getattr(importlib.import_module(module), class_name)
    defining = next((c for c in ours.__mro__ if name in vars(c)), None)
    is_ours = defining is not None and defining.__module__.startswith("kvtier")
    assert is_ours or not recorded["abstract"], "abstract in vLLM and not implemented"
    if not is_ours or (name == "__init__" and base != "OffloadingSpec"):
        return
    method = vars(defining)[name]
    assert isinstance(method, property) == (recorded["kind"] == "property")
    assert isinstance(method, classmethod) == (recorded["kind"] == "classmethod")
    if isinstance(method, property):
        return
    signature = inspect.signature(getattr(method, "__func__", method))
    receiver, names, optional = object(), recorded["names"], set(recorded["optional"])
    signature.bind(receiver, *names)
    signature.bind(receiver, **dict.fromkeys(names))
    signature.bind(receiver, *[name for name in names if name not in optional])


@pytest.mark.parametrize("version", RECORDED)
def test_used_fields_are_recorded(version: str) -> None:
    for module, used in USED_FIELDS.items():
        for name, fields in used.items():
            with case(module, name):
                assert fields <= set(RECORDED[version][module][name]["fields"])


@pytest.mark.parametrize("version", RECORDED)
def test_called_functions_take_the_passed_arguments(version: str) -> None:
    recorded = RECORDED[version]
    copies = recorded["vllm._custom_ops"]["swap_blocks_batch"]["names"]
    assert copies == ["src_ptrs", "dst_ptrs", "sizes", "is_src_access_order_any"]
    register = recorded["vllm.v1.kv_offload.cpu.host_register"]
    assert register["host_register"]["names"] == ["ptr", "num_bytes"]
    assert register["host_unregister"]["names"] == ["ptr"]
    factory = recorded["vllm.v1.kv_offload.factory"]["OffloadingSpecFactory"]["methods"]
    assert factory["register_spec"]["names"] == ["name", "module_path", "class_name"]


def test_signatures_of_installed_engine_match_the_record() -> None:
    base = pytest.importorskip(BASE)
    release = ".".join(map(str, versions.supported(versions.installed())))
    for name in OURS:
        for method, recorded in RECORDED[release][BASE][name]["methods"].items():
            found = inspect.getattr_static(getattr(base, name), method)
            found = getattr(found, "__func__", getattr(found, "fget", found))
            assert list(inspect.signature(found).parameters)[1:] == recorded["names"]
