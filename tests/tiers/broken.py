"""Injected failures of system calls, for the tests of the tiers in folders."""

import os
from collections import Counter
from collections.abc import Sequence

from kvtier.tiers.base import Buffer


class BadDay:
    """A mix-in: calls named in `errors` fail, and those in `short` move fewer bytes.

    Each call of the subclass begins with `_begin`.
    """

    def __init__(self) -> None:
        self.errors: dict[str, int] = {}
        """The errno with which a call fails, by its name, until the entry is removed."""
        self.short: dict[str, int] = {}
        """The most bytes that a call moves, by its name."""
        self.calls: Counter[str] = Counter()
        self.order: list[str] = []
        """The names of all calls so far."""

    def _begin(self, name: str) -> None:
        self.calls[name] += 1
        self.order.append(name)
        if name in self.errors:
            raise OSError(self.errors[name], os.strerror(self.errors[name]))

    def _cut(self, name: str, buffers: Sequence[Buffer]) -> list[Buffer]:
        left = self.short.get(name, 1 << 62)
        kept = []
        for buffer in buffers:
            kept.append(buffer[:left])
            left -= len(kept[-1])
        return [buffer for buffer in kept if len(buffer)]
