"""Our halves accept every call the supported engines make.

The shapes in `signatures/` were read from the engines' wheels (record_signatures.py), so that
both ends of the supported range are checked with only one of them installed, or none.
"""

import importlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvtier.connectors.vllm import versions

FOLDER = Path(__file__).parent / "signatures"
RECORDED = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
BASE = "vllm.v1.kv_offload.base"
OURS = {
    "OffloadingWorker": ("kvtier.connectors.vllm.worker", "CopyWorker"),
    "OffloadingManager": ("kvtier.connectors.vllm.manager", "KVTierManager"),
    "OffloadingSpec": ("kvtier.connectors.vllm.spec", "KVTier"),
}
# What our code builds or reads, and the engine defines.
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


def calls() -> Iterator[Any]:
    for version, modules in RECORDED.items():
        for base in OURS:
            for name, method in modules[BASE][base]["methods"].items():
                yield pytest.param(base, name, method, id=f"{version} {base}.{name}")


def test_both_ends_of_the_supported_range_are_recorded() -> None:
    assert set(RECORDED) == {"0.32", "0.33"}
    assert [versions.supported(version) for version in RECORDED] == [(0, 32), (0, 33)]


@pytest.mark.parametrize(("base", "name", "recorded"), list(calls()))
def test_our_class_accepts_the_call(base: str, name: str, recorded: dict[str, Any]) -> None:
    pytest.importorskip(BASE)
    module, class_name = OURS[base]
    ours = getattr(importlib.import_module(module), class_name)
    defining = next((c for c in ours.__mro__ if name in vars(c)), None)
    is_ours = defining is not None and defining.__module__.startswith("kvtier")
    assert is_ours or not recorded["abstract"], "abstract upstream and not implemented"
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
@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, used in USED_FIELDS.items() for name in used]
)
def test_the_fields_we_use_exist(version: str, module: str, name: str) -> None:
    assert USED_FIELDS[module][name] <= set(RECORDED[version][module][name]["fields"])


@pytest.mark.parametrize("version", RECORDED)
def test_the_functions_we_call_take_what_we_pass(version: str) -> None:
    recorded = RECORDED[version]
    copies = recorded["vllm._custom_ops"]["swap_blocks_batch"]["names"]
    assert copies == ["src_ptrs", "dst_ptrs", "sizes", "is_src_access_order_any"]
    register = recorded["vllm.v1.kv_offload.cpu.host_register"]
    assert register["host_register"]["names"] == ["ptr", "num_bytes"]
    assert register["host_unregister"]["names"] == ["ptr"]
    factory = recorded["vllm.v1.kv_offload.factory"]["OffloadingSpecFactory"]["methods"]
    assert factory["register_spec"]["names"] == ["name", "module_path", "class_name"]


def test_the_record_of_the_installed_engine_is_true() -> None:
    base = pytest.importorskip(BASE)
    release = ".".join(map(str, versions.supported(versions.installed())))
    for name in OURS:
        for method, recorded in RECORDED[release][BASE][name]["methods"].items():
            found = inspect.getattr_static(getattr(base, name), method)
            found = getattr(found, "__func__", getattr(found, "fget", found))
            assert list(inspect.signature(found).parameters)[1:] == recorded["names"]
