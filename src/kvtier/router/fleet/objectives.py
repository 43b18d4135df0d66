"""Priorities of requests by the name of their objective, combined from several sources.

Flags set some priorities when the process starts; InferenceObjectives in Kubernetes come and go
while it runs. Endpoint selection reads one mapping. Invariant: an object never overrides a flag.
Belongs to the event loop's thread.
"""

from collections.abc import Iterator, Mapping


class Objectives(Mapping[str, int]):
    """A mapping of objective to priority. Requests below 0 may be shed; a missing entry means 0."""

    def __init__(self, fixed: Mapping[str, int] | None = None) -> None:
        """`fixed` takes precedence over every later `update`."""
        self._fixed = dict(fixed or {})
        self._by_source: dict[str, Mapping[str, int]] = {}
        self._all = dict(self._fixed)

    def update(self, source: str, priorities: Mapping[str, int]) -> bool:
        """Replace all priorities of `source`; return True if that changed anything.

        If two sources name the same objective, the source that was added first wins.
        """
        if self._by_source.get(source) == priorities:
            return False
        self._by_source[source] = dict(priorities)
        self._all = {}
        for known in (*reversed(self._by_source.values()), self._fixed):
            self._all.update(known)
        return True

    def __getitem__(self, name: str) -> int:
        return self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)
