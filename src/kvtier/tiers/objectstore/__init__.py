"""A bucket as a store: S3, Google Cloud Storage and Azure Blob Storage, one object per file."""

from kvtier.tiers.objectstore.bucket import BucketTier
from kvtier.tiers.objectstore.store import ObjectStore

PLUGIN = BucketTier

__all__ = ["PLUGIN", "BucketTier", "ObjectStore"]
