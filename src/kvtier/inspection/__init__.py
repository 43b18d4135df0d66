"""Inspection of shared storage: what it holds (`surveyor`) and whether it is intact (`fsck`)."""
