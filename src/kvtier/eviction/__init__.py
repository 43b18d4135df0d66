"""Eviction policies, which choose the block that leaves a full tier; one policy per module."""
