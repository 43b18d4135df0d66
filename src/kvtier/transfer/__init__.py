"""Transfers of blocks between RAM and the lower tiers, off the engine's thread."""
