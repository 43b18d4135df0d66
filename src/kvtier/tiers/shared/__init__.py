"""The shared tier: verified segments of several blocks that any engine on any host may read."""

from kvtier.tiers.shared.tier import FolderTier

PLUGIN = FolderTier

__all__ = ["PLUGIN", "FolderTier"]
