"""What chooses, put together from a configuration: indexes, profiles, prompts, what they learn.

`kvtier route` and `kvtier epp` both take it from here, so that they choose alike.
"""

import ssl
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from prometheus_client.registry import Collector

from kvtier.errors import InvalidSettings
from kvtier.index.fleet.base import FleetIndex, Source
from kvtier.index.fleet.estimated import EstimatedIndex
from kvtier.index.fleet.precise import PreciseIndex
from kvtier.index.fleet.prompt import Prompt
from kvtier.router.choose.base import Candidate, Endpoint, InferenceRequest
from kvtier.router.choose.decision import RoutingDecision
from kvtier.router.choose.plugins import nearest
from kvtier.router.config import indexes
from kvtier.router.config.profiles import build_profiles, build_strategies
from kvtier.router.config.reading import Configuration
from kvtier.router.fleet.members import FleetListener
from kvtier.router.fleet.waiting import Waiting
from kvtier.router.learn.blended import BlendedIndex
from kvtier.router.learn.gauges import GaugeNames
from kvtier.router.learn.learner import Learner
from kvtier.router.learn.prompts import PromptBuilder, TokenSource
from kvtier.router.learn.sources import LocalSource
from kvtier.router.request.refusals import invalid

EVERY_MODEL = "*"


class Chooser(Protocol):
    """One profile; `profile.Profile` is one."""

    @property
    def headers(self) -> frozenset[str]:
        """Request headers that it reads, in lower case."""
        ...

    @property
    def reads_prompts(self) -> bool:
        """Whether it asks an index; where not, a prompt's length is enough."""
        ...

    def decide(
        self, request: InferenceRequest, endpoints: Sequence[Endpoint], now_s: float
    ) -> RoutingDecision:
        """Choose; no side effects. `endpoints` is not empty."""
        ...

    def routed(
        self, request: InferenceRequest, decision: RoutingDecision, chosen: Candidate
    ) -> None:
        """The request has been sent there."""
        ...

    def response_headers(self, request: InferenceRequest, endpoint: Endpoint) -> dict[str, str]:
        """What the client has to be told, so that it is recognised next time."""
        ...


class PromptReader(Protocol):
    """Makes prompts of bodies; `learn.prompts.PromptBuilder` is one."""

    async def of(self, body: Mapping[str, Any], model: str) -> Prompt:
        """The prompt as the indexes see it. Raises Refusal where nobody serves the model."""
        ...

    def unread(self, body: Mapping[str, Any]) -> Prompt:
        """Its length alone, about: nothing is tokenized or hashed. Never raises either."""
        ...


async def prompt_for(
    chooser: Chooser, prompts: PromptReader, body: Mapping[str, Any], model: str
) -> Prompt:
    """What `chooser` needs of the prompt in `body`."""
    if chooser.reads_prompts:
        return await prompts.of(body, model)
    return prompts.unread(body)


class Choices:
    """The profiles that a request may name in `routing-strategy`, and the one for all others."""

    def __init__(
        self, usual: Chooser, named: Mapping[str, Chooser] | None = None, name: str = ""
    ) -> None:
        """`name`: one of `named` that takes the place of `usual`. Raises InvalidSettings."""
        self._named = dict(named or {})
        if name and name not in self._named:
            raise InvalidSettings(
                f"there is no profile or strategy {name!r}{nearest(name, self._named)}"
            )
        self._usual = self._named[name] if name else usual

    def of(self, strategy: str | None) -> Chooser:
        """The profile of that name. Raises Refusal (400) for a name that is not known."""
        if not strategy:
            return self._usual
        found = self._named.get(strategy)
        if found is None:
            near = nearest(strategy[:60], self._named)
            raise invalid(
                f"routing-strategy {strategy[:60]!r} is not known{near}",
                "routing-strategy",
            )
        return found


class KnownModels:
    """Meets Prompts."""

    def __init__(self, prompts: PromptReader, waiting: Waiting) -> None:
        self._prompts = prompts
        self._waiting = waiting

    async def of(self, body: Mapping[str, Any], model: str) -> Prompt:
        """See Prompts. Raises Refusal where nobody serves the model, or nobody can now."""
        self._waiting.with_room(model)
        return await self._prompts.of(body, model)

    def unread(self, body: Mapping[str, Any]) -> Prompt:
        """See Prompts."""
        return self._prompts.unread(body)


class Assembly:
    """All of one process; an async context while it is used."""

    def __init__(
        self,
        configuration: Configuration,
        *,
        usual: str = "",
        replica_key: str | None = None,
        tokenizers: Mapping[str, Path] | None = None,
        names: GaugeNames | None = None,
        keeps_matches: bool = False,
        evictors: Sequence[str] = (),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`usual`: the profile or strategy of requests that name none.

        `tokenizers`: folders by model, `*` for all others. `names`: of the replicas' metrics;
        None: those of the configuration. `keeps_matches`: decisions are kept with what was held,
        whoever made them. `evictors`: endpoints of their events. `tls`: how https replicas are
        checked; None: as the system does. Raises InvalidSettings.
        """
        precise = PreciseIndex()
        estimated: dict[str, EstimatedIndex] = {}
        made: dict[str, FleetIndex] = {}
        for name, spec in configuration.indexes.items():
            if spec.source is Source.PRECISE:
                made[name] = precise
                continue
            estimated[name] = indexes.build_estimated(spec)
            made[name] = estimated[name]
            if spec.source is None:
                made[name] = BlendedIndex(estimated[name], precise)
        profiles = build_profiles(configuration, made, keeps_matches=keeps_matches)
        named = {**build_strategies(made, keeps_matches=keeps_matches), **profiles}
        self.choices = Choices(next(iter(profiles.values())), named, usual)
        self._learner = Learner(
            list(estimated.values()),
            [precise] if any(one.source is Source.PRECISE for one in made.values()) else [],
            tuned=[estimated[name] for name in estimated if configuration.indexes[name].autotune],
            key=replica_key,
            names=names or configuration.gauges,
            evictors=evictors,
            tls=tls,
        )
        self.listeners: Sequence[FleetListener] = (self._learner,)
        self.collectors: Sequence[Collector] = (self._learner.meter,)
        self._local = {model: LocalSource(folder) for model, folder in (tokenizers or {}).items()}
        sources: ChainMap[str, TokenSource] = ChainMap({**self._local})
        if EVERY_MODEL not in self._local:
            # Else they would come before the tokenizer that somebody gave for all models.
            sources.maps.append(self._learner.engines)  # type: ignore[arg-type]  # only read
        self.prompts: PromptReader = PromptBuilder(sources, called=self._learner.aliases.canonical)
        self.saturation: Callable[[Sequence[Endpoint], float], float] | None = None

    async def __aenter__(self) -> "Assembly":
        await self._learner.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._learner.close()
        for source in self._local.values():
            source.close()
