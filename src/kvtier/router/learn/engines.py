"""Engines that turn prompts into tokens, found among the members of the fleet.

Invariants: what was remembered of an engine's answers goes when the engine leaves; one that did
not answer is not asked for a while, where another can be.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

import aiohttp

from kvtier.router.fleet.members import Member
from kvtier.router.learn.sources import EngineSource, TokenSource

EVENTS: Final = "kv-events"
"""The label that says where a replica publishes its events."""


class Engines(Mapping[str, TokenSource]):
    """By model, the engine that turns prompts into tokens: the first that publishes events.

    Where that one did not answer a moment ago, the next. Only those that publish: where nobody
    tells tokens, comparing characters does as well and asks nobody.
    """

    def __init__(self, members: Callable[[], Iterable[Member]]) -> None:
        self._members = members
        self._session: aiohttp.ClientSession | None = None
        self._sources: dict[str, EngineSource] = {}

    def use(self, session: aiohttp.ClientSession) -> None:
        """Ask through it."""
        self._session = session

    def __getitem__(self, model: str) -> TokenSource:
        first: EngineSource | None = None
        for member in self._members():
            if (
                member.offered
                and EVENTS in member.replica.labels
                and model in member.endpoint.models
            ):
                source = self._source(member.replica.url)
                if not source.is_resting:
                    return source
                first = first or source
        if first is None:
            raise KeyError(model)
        return first

    def left(self, url: str) -> None:
        """Nobody is asked there any more. Idempotent."""
        self._sources.pop(url, None)

    def __iter__(self) -> Iterator[str]:
        found = (member.endpoint.models for member in self._members() if member.offered)
        return iter(frozenset().union(*found))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _source(self, url: str) -> EngineSource:
        assert self._session is not None
        found = self._sources.get(url)
        if found is None:
            found = self._sources[url] = EngineSource(self._session, url)
        return found
