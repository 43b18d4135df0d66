"""System calls on a bad day: what the broken file systems of both folder tiers share."""

import os
from collections import Counter
from collections.abc import Sequence

from kvtier.tiers.base import Buffer


class BadDay:
    """Calls named in `errors` fail, those in `short` do less. Each call begins with `_begin`."""

    def __init__(self) -> None:
        self.errors: dict[str, int] = {}
        """Name of a call -> errno it fails with, until it is removed."""
        self.short: dict[str, int] = {}
        """Name of a call -> bytes it moves at most."""
        self.calls: Counter[str] = Counter()
        self.order: list[str] = []
        """Names of all calls so far."""

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
