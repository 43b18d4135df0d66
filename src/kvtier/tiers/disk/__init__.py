"""The local-disk tier: a slab of aligned slots, an append log and checkpoints."""

from kvtier.tiers.disk.folder import check_unused
from kvtier.tiers.disk.tier import DiskTier

PLUGIN = DiskTier

__all__ = ["PLUGIN", "DiskTier", "check_unused"]
