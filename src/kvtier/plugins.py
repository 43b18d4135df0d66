"""Loads plugins by name: `eviction: lru` is the class that `kvtier/eviction/lru.py` exports.

A new plugin is one new file and needs no other change. A built-in module exports its class as
`PLUGIN`; other distributions declare an entry point in the group `kvtier.<kind>`. Invariant:
built-in plugins win, so an installed package cannot replace one silently.
"""

import importlib
import importlib.metadata
import pkgutil
import re
from typing import Any, Final

from kvtier.errors import InvalidSettings

EXPORT: Final = "PLUGIN"
"""The attribute of a module that holds its plugin."""

_NAME = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)


def load(kind: str, name: str) -> Any:
    """Return the plugin `name` of the package `kvtier.<kind>` (`eviction`, `admission`, `tiers`).

    Imports one module. Raises InvalidSettings, which lists the known names or says which
    dependency is missing.
    """
    found = _built_in(kind, name) or _entry_point(kind, name)
    if found is None:
        raise InvalidSettings(f"no {kind} called {name!r}; known are {', '.join(known(kind))}")
    return found


def known(kind: str) -> tuple[str, ...]:
    """Return the names that `load` accepts, sorted. Imports all built-in modules of the kind."""
    room = importlib.import_module(f"kvtier.{kind}")
    built_in = {
        module.name for module in pkgutil.iter_modules(room.__path__) if _exports(kind, module.name)
    }
    return tuple(sorted(built_in | set(_entry_points(kind).names)))


def _exports(kind: str, name: str) -> bool:
    try:
        return _built_in(kind, name) is not None
    except InvalidSettings:  # the plugin exists, but an optional dependency is not installed
        return True


def _built_in(kind: str, name: str) -> Any | None:
    module = f"kvtier.{kind}.{name}"
    if not _NAME.fullmatch(name):
        return None
    try:
        return getattr(importlib.import_module(module), EXPORT, None)
    except ModuleNotFoundError as error:
        if error.name == module:
            return None
        raise InvalidSettings(
            f"{kind} {name!r} needs the module {error.name}, which is not installed"
        ) from error


def _entry_point(kind: str, name: str) -> Any | None:
    for point in _entry_points(kind):
        if point.name == name:
            try:
                return point.load()
            except (ImportError, AttributeError) as error:
                raise InvalidSettings(
                    f"{kind} {name!r} is installed as {point.value} but cannot be loaded: {error}"
                ) from error
    return None


def _entry_points(kind: str) -> importlib.metadata.EntryPoints:
    return importlib.metadata.entry_points(group=f"kvtier.{kind}")
