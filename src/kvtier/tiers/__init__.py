"""Tiers below RAM: local disk, a shared folder, a bucket; `base` is their contract."""
