"""The settings of engines: one tree, and `load`, which fills it from all sources."""

from kvtier.settings.layers import Resolved, load, resolve
from kvtier.settings.tree import (
    DiskSettings,
    ObjectStoreSettings,
    RamSettings,
    Settings,
    SharedSettings,
    TransferSettings,
)

__all__ = [
    "DiskSettings",
    "ObjectStoreSettings",
    "RamSettings",
    "Resolved",
    "Settings",
    "SharedSettings",
    "TransferSettings",
    "load",
    "resolve",
]
