"""What chooses, put together from a configuration: indexes, profiles, prompts, what they learn.

`kvtier route` and `kvtier epp` both take it from here, so that they choose alike.
"""

import ssl
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from prometheus_client.registry import Collector

from kvtier.index.fleet.base import FleetIndex, Source
from kvtier.index.fleet.estimated import EstimatedIndex
from kvtier.index.fleet.precise import PreciseIndex
from kvtier.router.choices import Choices, Prompts
from kvtier.router.choose import profile
from kvtier.router.choose.base import Endpoint
from kvtier.router.config import indexes
from kvtier.router.config.reading import Configuration
from kvtier.router.config.strategies import strategies
from kvtier.router.fleet.members import FleetListener
from kvtier.router.learn.blended import BlendedIndex
from kvtier.router.learn.gauges import GaugeNames
from kvtier.router.learn.learner import Learner
from kvtier.router.learn.prompts import PromptBuilder, TokenSource
from kvtier.router.learn.sources import LocalSource

EVERY_MODEL = "*"


class Assembled:
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
            estimated[name] = indexes.estimate(spec)
            made[name] = estimated[name]
            if spec.source is None:
                made[name] = BlendedIndex(estimated[name], precise)
        profiles = profile.build(configuration, made, keeps_matches=keeps_matches)
        named = {**strategies(made, keeps_matches=keeps_matches), **profiles}
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
        self.prompts: Prompts = PromptBuilder(sources, called=self._learner.served.of)
        self.saturation: Callable[[Sequence[Endpoint], float], float] | None = None

    async def __aenter__(self) -> "Assembled":
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
