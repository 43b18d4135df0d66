"""The one settings tree and how it is filled; `load` is the way in."""

from kvtier.settings.layers import Resolved, load, resolve
from kvtier.settings.tree import Disk, ObjectStore, Ram, Settings, Shared, Transfer

__all__ = [
    "Disk",
    "ObjectStore",
    "Ram",
    "Resolved",
    "Settings",
    "Shared",
    "Transfer",
    "load",
    "resolve",
]
