"""The one settings tree and how it is filled; `load` is the way in."""

from kvtier.settings.layers import Resolved, load, resolve
from kvtier.settings.tree import Disk, Ram, Settings, Transfer

__all__ = ["Disk", "Ram", "Resolved", "Settings", "Transfer", "load", "resolve"]
