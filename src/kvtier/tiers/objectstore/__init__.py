"""The object-store tier: S3, Google Cloud Storage or Azure Blob Storage, one object per file."""

from kvtier.tiers.objectstore.store import BucketStore
from kvtier.tiers.objectstore.tier import BucketTier

PLUGIN = BucketTier

__all__ = ["PLUGIN", "BucketTier", "BucketStore"]
