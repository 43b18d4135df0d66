"""The one settings tree and how it is filled; `load` is the way in."""

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
