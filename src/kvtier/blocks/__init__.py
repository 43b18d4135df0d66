"""Blocks: their identity, layout and checksums, and the events about them."""
