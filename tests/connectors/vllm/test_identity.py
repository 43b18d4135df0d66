import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("vllm.v1.kv_offload.config")

from vllm.config import VllmConfig
from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)

from kvtier.blocks.key import KeySpace
from kvtier.blocks.layout import BlockLayout
from kvtier.connectors.vllm import identity
from kvtier.connectors.vllm.arrangement import Arrangement, choose_arrangement
from tests.cases import case

LAYOUT = BlockLayout(block_bytes=4096, tokens_per_block=128)


def config(model: Path, /, **changes: Any) -> OffloadingConfig:
    plain = OffloadingConfig(
        groups=(OffloadingGroupConfig(128, ("layer.0", "layer.1"), 0),),
        worker_kv_bytes_per_block=4096,
        enable_kv_cache_events=False,
        extra_config={},
        engine_id="engine",
        model=OffloadingModelConfig(str(model), "bfloat16"),
        cache=OffloadingCacheConfig(128, 1),
        parallel=OffloadingParallelConfig(0, 1, 1, 1, 1, 1, 0, 1, None, True),
        kv_cache_layout="LBHNC",
    )
    return dataclasses.replace(plain, **changes)


def engine(**changes: Any) -> VllmConfig:
    """Return the fields of the engine's configuration that the key space uses."""
    sections: dict[str, dict[str, Any]] = {
        "model_config": {
            "revision": None, "dtype": "torch.bfloat16", "quantization": None,
            "hf_overrides": {}, "hf_config": SimpleNamespace(to_dict=lambda: {"layers": 2}),
        },
        "load_config": {"load_format": "auto", "download_dir": None},
        "cache_config": {"prefix_caching_hash_algo": "sha256"},
    }  # fmt: skip
    for name, value in changes.items():
        section = next(s for s, fields in sections.items() if name in fields)
        sections[section][name] = value
    built = object.__new__(VllmConfig)
    for name, fields in sections.items():
        object.__setattr__(built, name, SimpleNamespace(**fields))
    return built


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def space(model: Path, /, *, engine_: VllmConfig | None = None, **changes: Any) -> KeySpace:
    found = config(model, **changes)
    return identity.key_space(found, LAYOUT, choose_arrangement(found, None), engine_ or engine())


def test_key_space_of_equal_engines_is_equal(model: Path) -> None:
    assert space(model).digest == space(model, engine_id="another").digest


def test_key_space_differs_with_configuration(model: Path) -> None:
    cases: list[tuple[str, dict[str, Any]]] = [
        ("dtype", {"model": OffloadingModelConfig(str(model), "fp8")}),
        ("layout", {"kv_cache_layout": "BLHNC"}),
        ("tokens_per_hash", {"cache": OffloadingCacheConfig(64, 1)}),
        ("blocks_per_chunk", {"cache": OffloadingCacheConfig(128, 2)}),
        ("groups", {"groups": (OffloadingGroupConfig(128, ("layer.1", "layer.0"), 0),)}),
        ("groups", {"groups": (OffloadingGroupConfig(64, ("layer.0", "layer.1"), 0),)}),
        ("tp_size", {"parallel": OffloadingParallelConfig(0, 2, 2, 1, 1, 1, 0, 1, None, True)}),
        ("pp_size", {"parallel": OffloadingParallelConfig(0, 2, 1, 2, 1, 1, 0, 1, None, True)}),
        ("layout", {"parallel": OffloadingParallelConfig(0, 1, 1, 1, 1, 2, 0, 1, None, True)}),
    ]
    for field, changes in cases:
        with case(changes):
            differing = space(model).differing(space(model, **changes))
            assert field in [line.partition(":")[0] for line in differing]


def test_key_space_differs_with_engine_settings(model: Path) -> None:
    changes: list[dict[str, Any]] = [
        {"quantization": "fp8"},
        {"hf_overrides": {"rope_theta": 1.0}},
        {"hf_config": SimpleNamespace(to_dict=lambda: {"layers": 3})},
        {"load_format": "dummy"},
        {"dtype": "torch.float32"},
    ]
    for change in changes:
        with case(change):
            (line,) = space(model).differing(space(model, engine_=engine(**change)))
            assert line.startswith("weights: ")


def test_key_space_of_canonical_blocks_is_equal_on_any_tp_size(model: Path) -> None:
    canonical = Arrangement(payload_bytes=4096, slice_bytes=4096, obstacle=None)
    sizes = [OffloadingParallelConfig(0, n, n, 1, 1, 1, 0, 1, None, True) for n in (1, 4)]
    one, four = (
        identity.key_space(config(model, parallel=size), LAYOUT, canonical, engine())
        for size in sizes
    )
    assert one.digest == four.digest
    assert (four.layout, four.world_size, four.tp_size) == ("LBHNC canonical", 1, 1)
    assert four != space(model, parallel=sizes[1])


def test_key_space_ignores_host_paths_in_model_configuration(model: Path) -> None:
    local = SimpleNamespace(to_dict=lambda: {"layers": 2, "_name_or_path": "/home/a"})
    assert space(model) == space(model, engine_=engine(hf_config=local))


def test_key_space_differs_with_weights_of_same_name(model: Path) -> None:
    before = space(model)
    (model / "model.safetensors").write_bytes(b"Weights")
    (line,) = before.differing(space(model))
    assert line.startswith("weights: ")


def test_random_hash_seed_is_unique(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    drawn = engine(prefix_caching_hash_algo="xxhash")
    assert space(model, engine_=drawn).hash_seed != space(model, engine_=drawn).hash_seed
    assert space(model).hash_seed == space(model).hash_seed
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert space(model, engine_=drawn) == space(model, engine_=drawn)
    assert space(model).hash_seed == "PYTHONHASHSEED=0"


def test_engine_config_is_found_in_calling_connector() -> None:
    def connect(vllm_config: VllmConfig) -> VllmConfig | None:
        return identity.engine_config()

    mine = engine()
    assert connect(mine) is mine
    assert connect("not one") is None  # type: ignore[arg-type]


def test_key_space_without_engine_config_is_unknown(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = identity.key_space(config(model), LAYOUT, choose_arrangement(config(model), None))
    assert found.hash_algorithm == identity.UNKNOWN
    assert "configuration was not found" in caplog.text
    assert found != space(model)


def test_instruction_set_is_the_widest_one() -> None:
    for flags, name in (
        ("fpu avx2 avx512f amx_tile", "amx"),
        ("fpu avx2 avx512f", "avx512"),
        ("fpu avx avx2", "avx2"),
        ("fpu", "plain"),
    ):
        found = identity.instruction_set(f"processor : 0\nflags\t\t: {flags}\n")
        assert found == name, flags
    assert identity.instruction_set("") == "plain"
