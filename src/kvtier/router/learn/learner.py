"""The learner: it keeps endpoints and indexes up to date from replicas' metrics and KV events.

Endpoint selection only reads endpoints and indexes and waits for nothing; the learner maintains
them, for `kvtier route` and `kvtier epp` alike. The labels `kv-events` and `kv-events-replay` say
where a replica publishes its events: an address (`tcp://host:5557`), or a port of the replica's
host, because the value of a Kubernetes label cannot contain an address.

Invariants: a replica's response, or the lack of one, affects only the tasks of that replica; if a
stream of events fails, the blocks it reported are removed and the stream is restarted; when a
replica is removed, its tasks end and its entries in the indexes are removed; after `close` no task,
socket or thread is left.
"""

import asyncio
import logging
import ssl
from collections.abc import Sequence
from typing import Final

import aiohttp
import msgspec
import zmq.asyncio

from kvtier.index.fleet.base import FleetIndex
from kvtier.index.fleet.estimated import EstimatedIndex, compared
from kvtier.index.fleet.events import KVEvent
from kvtier.index.fleet.precise import PreciseIndex
from kvtier.router.fleet.members import FleetListener, FleetMember
from kvtier.router.learn.aliases import ModelAliases, fetch_models
from kvtier.router.learn.events import EventStream
from kvtier.router.learn.evictors import Evictors, SharedSink
from kvtier.router.learn.gauges import GaugeNames
from kvtier.router.learn.metering import LearningMeter
from kvtier.router.learn.metrics import Scraper, apply_load
from kvtier.router.learn.sources import EVENTS, EngineSources

_log = logging.getLogger(__name__)

REPLAY: Final = "kv-events-replay"
SCRAPE_S: Final = 0.5
"""The interval between two scrapes of a replica's metrics."""
_MODEL_POLL_S: Final = 0.2
"""How often to check which model a replica that publishes events serves."""
_FETCH_S: Final = 2.0
"""The timeout of a request to `/v1/models`."""
_FETCH_AGAIN_S: Final = 5.0


class _Tasks(msgspec.Struct):
    """The tasks of one replica."""

    scrape: asyncio.Task[None]
    published: tuple[str | None, str | None] = (None, None)
    """The endpoints of its events and of their replay."""
    events: list[asyncio.Task[None]] = []
    """The tasks that depend on `published`."""


class ReplicaSink:
    """An EventSink that applies a replica's events to one index, whatever their topic."""

    def __init__(self, index: PreciseIndex, replica: str) -> None:
        self._index = index
        self._replica = replica

    def accepts(self, topic: bytes) -> bool:
        """Return True: all events of the engine are about its own cache."""
        return True

    def apply(self, topic: bytes, events: Sequence[KVEvent]) -> None:
        """Apply `events` to the replica's part of the index."""
        self._index.apply(self._replica, events)

    def begin(self) -> None:
        """Note that the index is complete for the replica from now on."""
        self._index.begin(self._replica)

    def reset(self) -> None:
        """Remove all blocks of the replica."""
        self._index.reset(self._replica)


class Learner(FleetListener):
    """A FleetListener that learns about each member of a fleet.

    `open` it before replicas are added, and `close` it at the end. Belongs to one event loop.
    """

    def __init__(
        self,
        estimated: Sequence[EstimatedIndex],
        precise: Sequence[PreciseIndex],
        *,
        tuned: Sequence[EstimatedIndex] = (),
        key: str | None = None,
        names: GaugeNames | None = None,
        evictors: Sequence[str] = (),
        scrape_s: float = SCRAPE_S,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`tuned` are those of the `estimated` indexes whose block size follows the replicas'.

        `key` is the API key sent to replicas; `names` are the names of their gauges. `evictors`
        are the endpoints of evictors' events. `tls` verifies https replicas; None uses the
        system's certificates.
        """
        self._names = GaugeNames() if names is None else names
        self._estimated = tuple(estimated)
        self._precise = tuple(precise)
        self._tuned = tuple(tuned)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._scrape_s = scrape_s
        self._tls = tls
        self._tasks: dict[FleetMember, _Tasks] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None
        self._context: zmq.asyncio.Context | None = None
        self.engines = EngineSources(self._tasks.keys)
        self.aliases = ModelAliases()
        self._evictors = Evictors(
            evictors if precise else (), SharedSink(self._precise, self.aliases.models)
        )
        self.meter = LearningMeter(self._precise, self._evictors)

    async def open(self) -> None:
        """Prepare for replicas, and start following the evictors."""
        # A compressed response could expand to any size, so none is requested or decompressed.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._tls or True),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": "identity", **self._headers},
            auto_decompress=False,
        )
        self.engines.use(self._session)
        if self._precise:
            self._context = zmq.asyncio.Context()
            self._evictors.open(self._context)

    async def close(self) -> None:
        """Stop all tasks and close all sockets."""
        tasks = [task for of in self._tasks.values() for task in (of.scrape, *of.events)]
        for task in tasks:
            task.cancel()
        # Terminating the context would block the event loop until the tasks' sockets are closed.
        await asyncio.gather(*tasks, *self._ending, return_exceptions=True)
        await self._evictors.close()
        if self._session is not None:
            await self._session.close()
        if self._context is not None:
            self._context.term()

    def added(self, member: FleetMember) -> None:
        """Start learning about `member`, and stop for a draining one of the same name."""
        for other in self._members_named(member.replica.name):
            self._end(other)
        self._tasks[member] = _Tasks(asyncio.create_task(self._scrape(member)))
        self._begin_events(member)

    def updated(self, member: FleetMember) -> None:
        """If the labels name other endpoints for events, follow those and remove its blocks."""
        tasks = self._tasks.get(member)
        if tasks is None or tasks.published == _published(member):
            return
        self._stop(tasks.events)
        for index in self._precise:
            index.remove(member.replica.name)
        self._begin_events(member)

    def removed(self, member: FleetMember) -> None:
        """Stop learning about `member` and remove its blocks."""
        if member in self._tasks:
            self._end(member)

    def _members_named(self, name: str) -> list[FleetMember]:
        return [member for member in self._tasks if member.replica.name == name]

    def _begin_events(self, member: FleetMember) -> None:
        tasks = self._tasks[member]
        tasks.published, tasks.events = _published(member), []
        if self._precise and EVENTS in member.replica.labels:
            tasks.events.append(asyncio.create_task(self._follow(member)))
            if member.replica.models:
                tasks.events.append(asyncio.create_task(self._learn_models(member)))

    def _stop(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    def _end(self, member: FleetMember) -> None:
        tasks = self._tasks.pop(member)
        self._stop((tasks.scrape, *tasks.events))
        name = member.replica.name
        self.aliases.remove(name)
        self.meter.remove(name)
        self.engines.remove(member.replica.url)
        indexes: Sequence[FleetIndex] = (*self._estimated, *self._precise)
        for index in indexes:
            index.remove(name)

    async def _scrape(self, member: FleetMember) -> None:
        assert self._session is not None
        url = f"{member.replica.url}{self._names.path}"
        name, restarts = member.replica.name, 0
        scraper = Scraper(self._session, url, names=self._names)
        self.meter.scrapes[name] = scraper.counts
        while True:
            if member.cards:
                self.aliases.update(name, member.cards)
            load = await scraper.scrape()
            if load is not None:
                if scraper.counts.restarts != restarts:
                    restarts = scraper.counts.restarts
                    _log.info("replica %s has restarted", name)
                    # Precise indexes notice by themselves: the events' connection breaks.
                    for index in self._estimated:
                        index.remove(name)
                for index in self._tuned:
                    index.set_block_tokens(name, compared(load.block_tokens))
                apply_load(member.endpoint, load, self._estimated)
            await asyncio.sleep(self._scrape_s)

    async def _learn_models(self, member: FleetMember) -> None:
        """Fetch the replica's models; health checks do not if its models are configured."""
        assert self._session is not None
        while not (cards := await fetch_models(self._session, member.replica.url, _FETCH_S)):
            await asyncio.sleep(_FETCH_AGAIN_S)
        self.aliases.update(member.replica.name, cards)

    async def _follow(self, member: FleetMember) -> None:
        """Follow the replica's events, and restart whenever the name of its model changes."""
        while True:
            while (model := self._model(member)) is None:
                await asyncio.sleep(_MODEL_POLL_S)
            stream = asyncio.create_task(self._stream(member, model))
            try:
                while self._model(member) in (None, model):
                    await asyncio.sleep(_MODEL_POLL_S)
            finally:
                stream.cancel()
                await asyncio.gather(stream, return_exceptions=True)

    def _model(self, member: FleetMember) -> str | None:
        """Return the name in prompts of the model that the replica's events are about."""
        if member.cards:
            self.aliases.update(member.replica.name, member.cards)
        return self.aliases.base_model(member.replica.name) or min(
            member.endpoint.models, default=None
        )

    async def _stream(self, member: FleetMember, model: str) -> None:
        """Follow the replica's events, with one stream per index.

        A stream's state, such as the gaps it has seen, belongs to one index.
        """
        name = member.replica.name
        events, replay = _published(member)
        assert events is not None
        async with asyncio.TaskGroup() as group:
            for index in self._precise:
                index.add(name, model)
                stream = EventStream(
                    events,
                    ReplicaSink(index, name),
                    replay=replay,
                    context=self._context,
                    counts=self.meter.stream(name),
                )
                group.create_task(stream.run(f"replica {name}: {events}"))


def _published(member: FleetMember) -> tuple[str | None, str | None]:
    """Return the endpoints of a replica's events and of their replay."""
    labels = member.replica.labels
    return _address(member, labels.get(EVENTS)), _address(member, labels.get(REPLAY))


def _address(member: FleetMember, text: str | None) -> str | None:
    """Return the ZeroMQ endpoint in a label; `5557` is a port of the replica's host."""
    if text is None or not text.isdecimal():
        return text
    return f"tcp://{member.replica.address.rpartition(':')[0]}:{text}"
