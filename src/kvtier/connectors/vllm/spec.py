"""The spec that vLLM's `OffloadingConnector` loads: builds the manager and the worker.

The settings are in `kv_connector_extra_config`: `ram`, `disk`, `transfer` and so on as in
`docs/reference/settings.md`, or the keys of vLLM's own CPU offloading. Manager and worker
communicate only through the objects that vLLM passes between its processes.
"""

import logging
from pathlib import Path
from typing import Any

import msgspec
from vllm.platforms import current_platform
from vllm.v1.kv_offload.base import (
    CanonicalKVCaches,
    OffloadingManager,
    OffloadingMetricMetadata,
    OffloadingSpec,
    OffloadingWorker,
)
from vllm.v1.kv_offload.config import OffloadingConfig

from kvtier.blocks.layout import BlockLayout
from kvtier.cache.build import build_cache
from kvtier.clock import MonotonicClock
from kvtier.connectors.vllm import arrangement, stats, versions
from kvtier.connectors.vllm.copier import Copier
from kvtier.connectors.vllm.cpu import HostCopier, free_cores_setter
from kvtier.connectors.vllm.identity import engine_config, key_space
from kvtier.connectors.vllm.manager import KVTierManager
from kvtier.connectors.vllm.seals import Seals
from kvtier.connectors.vllm.slots import SlotLayout
from kvtier.connectors.vllm.worker import CopyWorker
from kvtier.settings import Settings, load, machine

_log = logging.getLogger(__name__)


class KVTier(OffloadingSpec):
    """The spec named by `spec_name: KVTier`. Raises InvalidSettings if a setting is wrong."""

    @classmethod
    def build_metric_definitions(
        cls, extra_config: dict[str, Any]
    ) -> dict[str, OffloadingMetricMetadata]:
        """Return the engine's metrics from `kvtier.metrics`, for vLLM's `/metrics`."""
        return stats.definitions()

    def __init__(self, config: OffloadingConfig) -> None:
        _use_engine_log()
        versions.supported(versions.installed())
        super().__init__(config)
        self._settings = replica_share(load(config.extra_config), config)
        self._arrangement = arrangement.choose_arrangement(config, engine_config())
        self._manager: KVTierManager | None = None
        self._worker: CopyWorker | None = None

    def get_manager(self) -> OffloadingManager:
        """Return the manager. The first call maps the arena and opens the tiers."""
        if self._manager is None:
            self._manager = self._build_manager()
        return self._manager

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        """Return the worker for this process's device."""
        if self._worker is None:
            layout = self._slot_layout(kv_caches)
            self._worker = CopyWorker(layout, _copier(layout, kv_caches))
        return self._worker

    def _slot_layout(self, kv_caches: CanonicalKVCaches) -> SlotLayout:
        parallel, slice_bytes = self.config.parallel, self._arrangement.slice_bytes
        # A single worker's pages are whole in any case, so they need no certified mapping.
        if parallel.world_size == 1 or not self._arrangement.is_canonical:
            return SlotLayout.from_caches(
                kv_caches,
                blocks_per_chunk=self.blocks_per_chunk,
                slice_bytes=slice_bytes,
                rank=parallel.rank,
            )
        return SlotLayout.from_mappings(
            kv_caches,
            blocks_per_chunk=self.blocks_per_chunk,
            payload_bytes=slice_bytes,
            rank=parallel.rank,
            layer_names=[group.layer_names for group in self.config.groups],
        )

    def _build_manager(self) -> KVTierManager:
        machine.check(self._settings)
        config = self.config
        groups = [group.group_id for group in config.groups]
        tokens = {
            group.group_id: group.tokens_per_block * self.blocks_per_chunk
            for group in config.groups
        }
        layout = BlockLayout(
            block_bytes=self._arrangement.payload_bytes, tokens_per_block=max(tokens.values())
        )
        cache = build_cache(
            self._settings,
            layout,
            key_space(config, layout, self._arrangement),
            group_suffixes=[group.to_bytes(4, "big") for group in groups],
            on_thread_start=free_cores_setter(),
        )
        _log.info(
            "kvtier: blocks can be used by %s",
            "engines of this parallelism only: " + self._arrangement.obstacle
            if self._arrangement.obstacle
            else "engines of any tensor-parallel size",
        )
        # A prefix position has one block per group.
        reporter = stats.Reporter(cache, layout.block_bytes, layout.tokens_per_block / len(groups))
        for name, blocks in zip(cache.tier_names, cache.capacity_blocks, strict=True):
            _log.info("kvtier: %s holds %d blocks of %d bytes", name, blocks, layout.block_bytes)
        return KVTierManager(
            cache,
            Seals.create(cache.arena.slots, config.parallel.world_size),
            MonotonicClock(),
            reporter=reporter,
            tokens_per_key=tokens,
            slice_bytes=self._arrangement.slice_bytes,
            emits_events=config.enable_kv_cache_events,
            drain_s=self._settings.transfer.drain,
        )


def replica_share(settings: Settings, config: OffloadingConfig) -> Settings:
    """Return the settings with this data-parallel replica's share of the node's capacities.

    Capacities are per node: eight replicas with `ram: 80GiB` get 10 GiB each, and each keeps
    its blocks in a folder of its own under `disk.path`.
    """
    replicas = config.parallel.data_parallel_size
    if replicas <= 1:
        return settings
    ram = msgspec.structs.replace(settings.ram, capacity=settings.ram.capacity // replicas)
    disk = settings.disk
    if disk is not None:
        folder = Path(disk.path) / f"replica-{config.parallel.data_parallel_index}"
        Path(disk.path).mkdir(mode=0o700, exist_ok=True)
        disk = msgspec.structs.replace(disk, path=str(folder), capacity=disk.capacity // replicas)
    return msgspec.structs.replace(settings, ram=ram, disk=disk)


def _use_engine_log() -> None:
    """Send kvtier's log to the engine's handlers, unless it has handlers of its own."""
    ours, engines = logging.getLogger("kvtier"), logging.getLogger("vllm")
    if not ours.handlers:
        ours.handlers = list(engines.handlers)
        ours.setLevel(engines.getEffectiveLevel())
        ours.propagate = engines.propagate


def _copier(layout: SlotLayout, caches: CanonicalKVCaches) -> Copier:
    if current_platform.is_cpu():
        return HostCopier(layout, caches)
    from kvtier.connectors.vllm.cuda import CudaCopier

    return CudaCopier(layout)
