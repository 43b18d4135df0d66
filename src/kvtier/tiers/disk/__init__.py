"""Local disk: a slab of aligned slots, an append log with checkpoints, blocks that survive."""

from kvtier.tiers.disk.tier import DiskTier

__all__ = ["DiskTier"]
