"""Priorities of requests by the name of their objective, from several places at once.

Why: flags name some when the process starts, and Kubernetes has objects for them that come and
go; who chooses only asks for a number. Invariant: what flags say is never changed by objects.
Belongs to the event loop's thread.
"""

from collections.abc import Iterator, Mapping


class Objectives(Mapping[str, int]):
    """Objective -> priority; unset is 0, below 0 may be shed."""

    def __init__(self, fixed: Mapping[str, int] | None = None) -> None:
        """`fixed` counts before all that is told later."""
        self._fixed = dict(fixed or {})
        self._told: dict[str, Mapping[str, int]] = {}
        self._all = dict(self._fixed)

    def update(self, source: str, priorities: Mapping[str, int]) -> bool:
        """All that `source` knows now; whether that is new.

        Where two sources name the same objective, the one that was told of first counts.
        """
        if self._told.get(source) == priorities:
            return False
        self._told[source] = dict(priorities)
        self._all = {}
        for known in (*reversed(self._told.values()), self._fixed):
            self._all.update(known)
        return True

    def __getitem__(self, name: str) -> int:
        return self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)
