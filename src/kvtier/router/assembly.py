"""Everything that chooses replicas in one process, assembled from a configuration.

`kvtier route` and `kvtier epp` both use an `Assembly` of indexes, profiles, prompts and learning,
so that they choose alike. Their data paths depend only on the protocols `Chooser` and
`PromptReader` and not on scorers, indexes or tokenizers. All of it runs on the event loop's
thread.
"""

import ssl
from collections import ChainMap
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from prometheus_client.registry import Collector

from kvtier.errors import InvalidSettings
from kvtier.index.fleet.base import FleetIndex, IndexSource
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
"""The key of the tokenizer for all models that have none of their own."""


class Chooser(Protocol):
    """The part of a `Profile` that the data path uses."""

    @property
    def headers(self) -> frozenset[str]:
        """Names of the request headers that it reads, in lower case."""
        ...

    @property
    def reads_prompts(self) -> bool:
        """True if it reads prompts; otherwise a prompt's length is enough."""
        ...

    def decide(
        self, request: InferenceRequest, endpoints: Sequence[Endpoint], now_s: float
    ) -> RoutingDecision:
        """Choose among `endpoints`, which must not be empty, without side effects."""
        ...

    def routed(
        self, request: InferenceRequest, decision: RoutingDecision, chosen: Candidate
    ) -> None:
        """Record that the request was sent to `chosen`."""
        ...

    def response_headers(self, request: InferenceRequest, endpoint: Endpoint) -> dict[str, str]:
        """Return the headers by which the client's next request is recognized."""
        ...


class PromptReader(Protocol):
    """The part of a `PromptBuilder` that the data path uses."""

    async def of(self, body: Mapping[str, Any], model: str) -> Prompt:
        """Return the prompt as the indexes see it. Raises Refusal if no replica serves `model`."""
        ...

    def unread(self, body: Mapping[str, Any]) -> Prompt:
        """Return a prompt that knows only its approximate length. Never raises."""
        ...


async def prompt_for(
    chooser: Chooser, prompts: PromptReader, body: Mapping[str, Any], model: str
) -> Prompt:
    """Return the prompt in `body`, tokenized and hashed only if `chooser` reads prompts."""
    if chooser.reads_prompts:
        return await prompts.of(body, model)
    return prompts.unread(body)


class Choices:
    """The default profile, and those that a request can name in the header `routing-strategy`."""

    def __init__(
        self, default: Chooser, named: Mapping[str, Chooser] | None = None, name: str = ""
    ) -> None:
        """Use the entry `name` of `named` as the default profile, or `default` if it is empty.

        Raises InvalidSettings if there is no such entry.
        """
        self._named = dict(named or {})
        if name and name not in self._named:
            raise InvalidSettings(
                f"there is no profile or strategy {name!r}{nearest(name, self._named)}"
            )
        self._default = self._named[name] if name else default

    def of(self, strategy: str | None) -> Chooser:
        """Return the profile named by a request, or the default one for None.

        Raises Refusal (400) for an unknown name.
        """
        if not strategy:
            return self._default
        found = self._named.get(strategy)
        if found is None:
            near = nearest(strategy[:60], self._named)
            raise invalid(
                f"routing-strategy {strategy[:60]!r} is not known{near}",
                "routing-strategy",
            )
        return found


class KnownModels:
    """A prompt reader that first refuses requests for models that no replica can serve.

    Tokenizing and hashing the prompt is most of the router's work for a request. Moreover, state
    and log messages that are kept per model must not grow with names that clients invent.
    """

    def __init__(self, prompts: PromptReader, waiting: Waiting) -> None:
        self._prompts = prompts
        self._waiting = waiting

    async def of(self, body: Mapping[str, Any], model: str) -> Prompt:
        """Return the prompt. Raises Refusal if no replica serves `model` or none can take it."""
        self._waiting.with_room(model)
        return await self._prompts.of(body, model)

    def unread(self, body: Mapping[str, Any]) -> Prompt:
        """Return a prompt that knows only its approximate length."""
        return self._prompts.unread(body)


class Assembly:
    """The indexes, profiles, prompts and learning of one process; an async context manager."""

    def __init__(
        self,
        configuration: Configuration,
        *,
        default: str = "",
        replica_key: str | None = None,
        tokenizers: Mapping[str, Path] | None = None,
        names: GaugeNames | None = None,
        keeps_matches: bool = False,
        evictors: Sequence[str] = (),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Assemble what `configuration` describes. Raises InvalidSettings.

        `default`: the profile or strategy for requests that name none; empty for the first profile.
        `replica_key`: the API key for requests to replicas.
        `tokenizers`: tokenizer folders by model, `*` for all other models.
        `names`: names of the replicas' metrics; None for those of the configuration.
        `keeps_matches`: query the indexes in every decision, even if no plugin reads them, so
        that the decision log shows what replicas held.
        `evictors`: addresses of the evictors' event streams.
        `tls`: the context for connections to https replicas; None for the system's defaults.
        """
        precise = PreciseIndex()
        estimated: dict[str, EstimatedIndex] = {}
        made: dict[str, FleetIndex] = {}
        for name, spec in configuration.indexes.items():
            if spec.source is IndexSource.PRECISE:
                made[name] = precise
                continue
            estimated[name] = indexes.build_estimated(spec)
            made[name] = estimated[name]
            if spec.source is None:
                made[name] = BlendedIndex(estimated[name], precise)
        profiles = build_profiles(configuration, made, keeps_matches=keeps_matches)
        named = {**build_strategies(made, keeps_matches=keeps_matches), **profiles}
        self.choices = Choices(next(iter(profiles.values())), named, default)
        self._learner = Learner(
            list(estimated.values()),
            [precise] if any(one.source is IndexSource.PRECISE for one in made.values()) else [],
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
            # The engines' tokenizers must not take precedence over one given for all models.
            sources.maps.append(self._learner.engines)  # type: ignore[arg-type]  # only read
        self.prompts: PromptReader = PromptBuilder(
            sources, canonical=self._learner.aliases.canonical
        )

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
