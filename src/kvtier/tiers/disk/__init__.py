"""Local disk: a slab of aligned slots, an append log with checkpoints, blocks that survive."""

from kvtier.tiers.disk.folder import check_unused
from kvtier.tiers.disk.tier import DiskTier

PLUGIN = DiskTier

__all__ = ["PLUGIN", "DiskTier", "check_unused"]
