"""The contestants of the engine benchmark, and how each one's server differs from vLLM alone.

Everything else is equal for all of them: model, flags, thread binding, workload, order and seed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

RAM_BYTES = 2 * 1024**3
DISK_CAPACITY = "6GiB"
LIMIT_BLOCKS = 400
"""Blocks of a device cache that holds every block of every workload."""

ALONE = "vllm-alone"
NATIVE = "vllm-tiering"
KVTIER_RAM = "kvtier-ram"
KVTIER_DISK = "kvtier-ram-disk"
LIMIT = "limit"


class Contestant(msgspec.Struct, frozen=True, kw_only=True):
    """One configuration of vLLM that takes part in the comparison."""

    name: str
    title: str
    kv_transfer: Mapping[str, Any] | None = None
    device_blocks: int | None = None
    """Blocks of the device cache; None for the number that the workloads are sized against."""
    needs_peers: bool = False
    """Whether its server imports from benchmarks/peers."""


def lineup(disk: Path) -> dict[str, Contestant]:
    """Return all contestants by name in display order; a disk tier writes below `disk`."""
    contestants = [
        Contestant(name=ALONE, title="vLLM alone"),
        Contestant(
            name=NATIVE,
            title="vLLM's own tiering, RAM",
            kv_transfer=_connector(
                spec_name="NativeTieringOnCPU",
                spec_module_path="native_tiering",
                cpu_bytes_to_use=RAM_BYTES,
            ),
            needs_peers=True,
        ),
        Contestant(name=KVTIER_RAM, title="kvtier, RAM", kv_transfer=kvtier_transfer(RAM_BYTES)),
        Contestant(
            name=KVTIER_DISK,
            title="kvtier, RAM + disk",
            kv_transfer=kvtier_transfer(RAM_BYTES, disk),
        ),
        Contestant(name=LIMIT, title="limit: everything on the device", device_blocks=LIMIT_BLOCKS),
    ]
    return {contestant.name: contestant for contestant in contestants}


def kvtier_transfer(
    ram_bytes: int,
    disk: Path | None = None,
    capacity: str = DISK_CAPACITY,
    shared: Path | None = None,
) -> dict[str, Any]:
    """Return the `--kv-transfer-config` that gives vLLM the tiers of kvtier."""
    tiers: dict[str, Any] = {"ram": f"{ram_bytes // 1024**2}MiB"}
    if disk is not None:
        tiers["disk"] = {"path": str(disk), "capacity": capacity}
    if shared is not None:
        tiers["shared"] = str(shared)
    return _connector(spec_name="KVTier", spec_module_path="kvtier.connectors.vllm.spec", **tiers)


def _connector(**extra: object) -> dict[str, Any]:
    return {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": extra,
    }
