"""The ranks of engines of any tensor-parallel size, with KV caches laid out by vLLM's own code.

Sizes, strides, mappings and the offloading configuration come from vLLM; only the contents of
the caches are random. No engine is started: the connector builds the workers from the tensors.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.config import build_offloading_config
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.worker import (
    OffloadingConnectorWorker,
)
from vllm.v1.core.kv_cache_utils import get_kv_cache_config_from_groups
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
)
from vllm.v1.kv_cache_layout import KVCacheLayout
from vllm.v1.kv_offload.config import OffloadingConfig
from vllm.v1.worker.utils import allocate_kv_cache

from kvtier.connectors.vllm.spec import KVTier
from kvtier.connectors.vllm.worker import CopyWorker

DEVICE_BLOCKS = 12
TOKENS = 4
HEAD = 8

Specs = Callable[[int], KVCacheSpec]
"""The spec of a rank that holds this many KV heads."""


def full(heads: int) -> KVCacheSpec:
    return FullAttentionSpec(
        block_size=TOKENS, num_kv_heads=heads, head_size=HEAD, dtype=torch.float16
    )


def window(heads: int) -> KVCacheSpec:
    return SlidingWindowSpec(
        block_size=TOKENS,
        num_kv_heads=heads,
        head_size=HEAD,
        dtype=torch.float16,
        sliding_window=2 * TOKENS,
    )


def latent(heads: int) -> KVCacheSpec:
    return MLAAttentionSpec(block_size=TOKENS, num_kv_heads=1, head_size=HEAD, dtype=torch.float16)


@dataclass(frozen=True)
class Model:
    """A model: groups of layers, and the number of KV heads of all ranks together."""

    heads: int
    groups: tuple[tuple[Specs, int], ...]
    """The spec and the number of layers of each group."""
    layout: str = "LBNHC"
    is_split: bool = False
    """K and V are in the two halves of the page, as in the tensors of some backends."""

    @property
    def use_mla(self) -> bool:
        return self.groups[0][0] is latent

    def shard(self, tp_size: int, rank: int) -> slice:
        """Return the heads that a rank holds."""
        share = max(1, self.heads // tp_size)
        first = rank * self.heads // tp_size
        return slice(0, 1) if self.use_mla else slice(first, first + share)

    def content(self) -> dict[str, torch.Tensor]:
        """Return random KV of all heads per layer: [device blocks, heads, tokens, content]."""
        generator = torch.Generator().manual_seed(7)
        found = {}
        for group, (spec, layers) in enumerate(self.groups):
            row = spec(1).state_content_size_bytes // 2
            parts = (2, HEAD) if self.is_split else (row,)
            shape = (DEVICE_BLOCKS, self.heads, TOKENS, *parts)
            for layer in range(layers):
                noise = torch.randint(-(2**15), 2**15 - 1, shape, generator=generator)
                found[f"g{group}.l{layer}"] = noise.to(torch.int16)
        return found


@dataclass
class Rank:
    """One worker of an engine."""

    model: Model
    tp_size: int
    rank: int
    folder: Path
    extra: dict[str, Any] = field(default_factory=dict)
    pp_size: int = 1

    def __post_init__(self) -> None:
        self.vllm = self._vllm()
        heads = max(1, self.model.heads // self.tp_size)
        self.cache = get_kv_cache_config_from_groups(
            self.vllm,
            [
                KVCacheGroupSpec([f"g{number}.l{layer}" for layer in range(layers)], spec(heads))
                for number, (spec, layers) in enumerate(self.model.groups)
            ],
            1 << 20,
        )
        replicas = self.tp_size if self.model.use_mla else 1
        self.cache.kv_tp_replicas = replicas

    @property
    def config(self) -> OffloadingConfig:
        return build_offloading_config(self.vllm, self.cache)

    def allocate(self) -> dict[str, torch.Tensor]:
        """Return zeroed caches, allocated as the engine's worker does."""
        layout = KVCacheLayout[self.model.layout]
        return allocate_kv_cache(self.cache, torch.device("cpu"), layout)

    def fill(self, caches: dict[str, torch.Tensor], content: dict[str, torch.Tensor]) -> None:
        """Write this rank's heads of one group's layers; the groups share their memory."""
        heads = self.model.shard(self.tp_size, self.rank)
        for name, rows in content.items():
            self.rows(caches[name]).copy_(rows[:, heads])

    def rows(self, cache: torch.Tensor) -> torch.Tensor:
        """Return a view of this rank's heads of a layer, in the shape of `Model.content`."""
        seen = self._seen(cache).view(torch.int16)
        if not self.model.is_split:
            return seen
        return seen.permute(0, 3, 2, 1, 4)

    def worker(self, caches: dict[str, torch.Tensor]) -> CopyWorker:
        """Return the worker that the connector builds from the tensors."""
        registered = {name: self._seen(cache) for name, cache in caches.items()}
        connector = connect(self.vllm, self.cache)
        connector.register_kv_caches(registered)
        assert isinstance(connector.worker, CopyWorker)
        return connector.worker

    def _seen(self, cache: torch.Tensor) -> torch.Tensor:
        """Return a cache in the shape that the engine's `_split_kv_regions` expects.

        The shape is [blocks, 2, tokens, heads, head].
        """
        if not self.model.is_split:
            return cache
        heads = max(1, self.model.heads // self.tp_size)
        half = TOKENS * heads * HEAD
        steps = {"LBNHC": (heads * HEAD, HEAD), "LBHNC": (HEAD, TOKENS * HEAD)}
        shape = (DEVICE_BLOCKS, 2, TOKENS, heads, HEAD)
        stride = (2 * half, half, *steps[self.model.layout], 1)
        return cache.as_strided(shape, stride, cache.storage_offset())

    def _vllm(self) -> VllmConfig:
        """Return a configuration with the sections that the offloading code reads."""
        shape = {"layers": [layers for _, layers in self.model.groups]}
        sections = {
            "model_config": SimpleNamespace(
                model=str(self.folder), dtype=torch.float16, revision=None, quantization=None,
                hf_overrides={}, hf_config=SimpleNamespace(to_dict=lambda: shape),
                use_mla=self.model.use_mla, max_model_len=1024,
                get_total_num_kv_heads=lambda: self.model.heads, get_head_size=lambda: HEAD,
            ),
            "parallel_config": SimpleNamespace(
                rank=self.rank, world_size=self.tp_size * self.pp_size,
                tensor_parallel_size=self.tp_size, pipeline_parallel_size=self.pp_size,
                prefill_context_parallel_size=1, decode_context_parallel_size=1,
                cp_kv_cache_interleave_size=1, distributed_executor_backend="mp",
                nnodes_within_dp=1, data_parallel_index=0, data_parallel_size=1,
                data_parallel_rank_local=None,
            ),
            "cache_config": SimpleNamespace(
                block_size=TOKENS, cache_dtype="auto", kv_cache_layout=self.model.layout,
                get_resolved_kv_cache_layout=lambda: KVCacheLayout[self.model.layout],
                num_gpu_blocks_override=DEVICE_BLOCKS, prefix_cache_retention_interval=None,
                prefix_match_unit=None, enable_prefix_caching=True,
                prefix_caching_hash_algo="sha256",
            ),
            "load_config": SimpleNamespace(load_format="auto", download_dir=None),
            "attention_config": SimpleNamespace(hisparse_config=None, backend=None),
            "kv_transfer_config": SimpleNamespace(
                kv_connector_extra_config={"ram": "1MiB", **self.extra}, engine_id="engine"
            ),
            "kv_events_config": None,
        }  # fmt: skip
        built = object.__new__(VllmConfig)
        for name, section in sections.items():
            object.__setattr__(built, name, section)
        return built


def connect(vllm_config: VllmConfig, kv_cache: KVCacheConfig) -> OffloadingConnectorWorker:
    """Connect as `OffloadingConnector` does; kvtier finds the local variable `vllm_config`."""
    spec = KVTier(build_offloading_config(vllm_config, kv_cache))
    return OffloadingConnectorWorker(spec, vllm_config, kv_cache)
