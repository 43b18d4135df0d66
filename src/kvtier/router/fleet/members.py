"""The set of endpoints: who is a member, who may get a request, who is on the way out.

Why: discovery, health checks and the data path all learn something about a replica; here it
comes together as one question, `candidates(model)`. Belongs to the event loop's thread.

Invariants: a member is offered only while it is healthy, its breaker is closed, and nobody
has taken it off the list. One that was taken off is gone for good only when its last request
has ended, so that reloading drops nothing.
"""

import asyncio
import enum
import logging
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from kvtier.router.choose.base import Endpoint
from kvtier.router.fleet.replicas import Replica, ReplicaDiscovery
from kvtier.transfer.breaker import Breaker, BreakerState

_log = logging.getLogger(__name__)

UNHEALTHY_AFTER: Final = 2
"""Health checks in a row that fail before a replica that was healthy gets no more requests."""


class ReplicaHealth(enum.Enum):
    """What its health checks say."""

    UNKNOWN = "unknown"
    """None has ended yet."""
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


class ModelCard(msgspec.Struct, frozen=True):
    """One entry of a replica's `/v1/models`: its id, and the JSON as the replica wrote it."""

    id: str
    text: bytes


class Member(msgspec.Struct, kw_only=True, eq=False):
    """A replica in the fleet. Only `Fleet` changes it."""

    replica: Replica
    endpoint: Endpoint
    health: ReplicaHealth = ReplicaHealth.UNKNOWN
    reason: str = "no health check has ended yet"
    """Why it gets no requests; empty when it does."""
    is_draining: bool = False
    cards: tuple[ModelCard, ...] = ()
    failures: int = 0
    """Health checks that failed in a row."""
    breaker: Breaker = msgspec.field(default_factory=Breaker)
    """Of requests that could not be delivered."""
    is_available: bool = False

    @property
    def is_cut_off(self) -> bool:
        """Whether requests could not be delivered; whatever the time, closed is closed."""
        return self.breaker.state(0.0) is not BreakerState.CLOSED


class FleetListener:
    """Hears who comes, changes and goes. All do nothing here."""

    def added(self, member: Member) -> None:
        """A replica was named; nothing has been sent to it yet."""

    def updated(self, member: Member) -> None:
        """It is said otherwise: its labels, or its models. It is the same replica."""

    def removed(self, member: Member) -> None:
        """It is off the list and its last request has ended."""


class Fleet:
    """Members by name. Not thread-safe; nothing here waits but `follow`."""

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}
        self._of: dict[Endpoint, Member] = {}
        self._draining: list[Member] = []
        self._by_model: dict[str, list[Endpoint]] = {}
        self._listeners: list[FleetListener] = []
        self._wake: list[Callable[[], None]] = []

    def add_listener(self, listener: FleetListener) -> None:
        """Tell it of everyone who comes, changes or goes from now on."""
        self._listeners.append(listener)

    def on_change(self, wake: Callable[[], None]) -> None:
        """Call it whenever `candidates` may give another answer."""
        self._wake.append(wake)

    async def follow(self, discovery: ReplicaDiscovery, ready: asyncio.Event) -> None:
        """Take each set that is told; `ready` is set after the first. Raises InvalidSettings."""
        async for replicas in discovery.watch():
            self.update(replicas)
            ready.set()

    def update(self, replicas: Sequence[Replica]) -> None:
        """This is the whole fleet now. Who has moved to another address leaves and joins."""
        wanted = {replica.name: replica for replica in replicas}
        for name, member in list(self._members.items()):
            if name not in wanted or wanted[name].url != member.replica.url:
                self._drain(member)
        for name, replica in wanted.items():
            if name in self._members:
                self._update(self._members[name], replica)
            else:
                self._add(replica)
        self._members = {name: self._members[name] for name in wanted}
        self._refresh()

    @property
    def members(self) -> Sequence[Member]:
        """Those on the list, in its order."""
        return tuple(self._members.values())

    @property
    def draining(self) -> Sequence[Member]:
        """Those off the list that still answer requests."""
        return tuple(self._draining)

    def member(self, endpoint: Endpoint) -> Member:
        """Of this endpoint, on the list or leaving. Raises KeyError when it is gone."""
        return self._of[endpoint]

    def is_available(self, endpoint: Endpoint) -> bool:
        """Whether it may get a request now, as it might when it was chosen."""
        member = self._of.get(endpoint)
        return member is not None and member.is_available

    def candidates(self, model: str) -> Sequence[Endpoint]:
        """Endpoints that may get a request for the model; O(1)."""
        return self._by_model.get(model, ())

    def available(self) -> list[Endpoint]:
        """Endpoints that may get any request."""
        return [member.endpoint for member in self._members.values() if member.is_available]

    def models(self) -> frozenset[str]:
        """What members serve, or served when they last answered."""
        names = (member.endpoint.models for member in self._members.values())
        return frozenset().union(*names)

    def mark_healthy(self, member: Member, cards: Sequence[ModelCard], now_s: float) -> None:
        """A health check was answered. `cards` is what it serves, if that was asked."""
        # An open breaker has evidence of its own; checks close it when its pause is over.
        if member.is_cut_off and member.breaker.admits(now_s):
            member.breaker.succeeded()
        member.failures = 0
        models = member.replica.models or frozenset(card.id for card in cards)
        changed = member.health is not ReplicaHealth.HEALTHY or models != member.endpoint.models
        member.health = ReplicaHealth.HEALTHY
        member.cards = tuple(cards)
        member.endpoint.models = models
        if changed or member.is_available == member.is_cut_off:
            self._refresh()

    def mark_unhealthy(self, member: Member, reason: str) -> None:
        """A health check failed."""
        member.failures += 1
        member.reason = reason
        if member.health is ReplicaHealth.UNKNOWN or member.failures >= UNHEALTHY_AFTER:
            member.health = ReplicaHealth.UNHEALTHY
            if member.is_available:
                self._refresh()

    def mark_delivered(self, member: Member) -> None:
        """A request was answered."""
        member.breaker.succeeded()

    def mark_undelivered(self, member: Member, now_s: float) -> None:
        """A request could not be sent, or was left without an answer."""
        member.breaker.failed(now_s)
        if member.is_available and member.is_cut_off:
            self._refresh()

    def add_load(self, endpoint: Endpoint, tokens: int, missing_tokens: int) -> "RequestLoad":
        """A request goes there: `tokens` in all, `missing_tokens` of which it has to compute."""
        endpoint.in_flight += 1
        endpoint.in_flight_tokens += tokens
        endpoint.pending_tokens = (endpoint.pending_tokens or 0) + missing_tokens
        return RequestLoad(self, endpoint, tokens, missing_tokens)

    def _add(self, replica: Replica) -> None:
        endpoint = Endpoint(
            name=replica.name,
            address=replica.address,
            models=replica.models,
            labels=replica.labels,
            pending_tokens=0,
        )
        member = Member(replica=replica, endpoint=endpoint)
        self._members[replica.name] = member
        self._of[endpoint] = member
        for listener in self._listeners:
            listener.added(member)

    def _update(self, member: Member, replica: Replica) -> None:
        if member.replica == replica:
            return
        ids = frozenset(card.id for card in member.cards)
        member.replica = replica
        member.endpoint.labels = replica.labels
        member.endpoint.models = replica.models or ids
        for listener in self._listeners:
            listener.updated(member)

    def _drain(self, member: Member) -> None:
        del self._members[member.replica.name]
        member.is_draining = True
        member.is_available = False
        finishing = member.endpoint.in_flight
        _log.info(
            "replica %s is off the list%s",
            member.replica.name,
            f"; {finishing} requests finish" if finishing else "",
        )
        self._draining.append(member)
        self.remove_drained()

    def remove_drained(self) -> None:
        """Part with those who are leaving and have answered their last request."""
        gone = [member for member in self._draining if member.endpoint.in_flight == 0]
        self._draining = [member for member in self._draining if member.endpoint.in_flight]
        for member in gone:
            del self._of[member.endpoint]
            for listener in self._listeners:
                listener.removed(member)

    def _refresh(self) -> None:
        by_model: dict[str, list[Endpoint]] = {}
        for member in self._members.values():
            member.is_available = member.health is ReplicaHealth.HEALTHY and not member.is_cut_off
            if member.is_available:
                member.reason = ""
                for model in member.endpoint.models:
                    by_model.setdefault(model, []).append(member.endpoint)
            elif member.health is ReplicaHealth.HEALTHY:
                member.reason = "requests could not be delivered to it"
        self._by_model = by_model
        for wake in self._wake:
            wake()


class RequestLoad:
    """A request's time at an endpoint, as far as its load goes. `end` has to be called."""

    __slots__ = ("_endpoint", "_fleet", "_missing_tokens", "_tokens")

    def __init__(self, fleet: Fleet, endpoint: Endpoint, tokens: int, missing_tokens: int) -> None:
        self._fleet = fleet
        self._endpoint = endpoint
        self._tokens = tokens
        self._missing_tokens = missing_tokens

    def answered(self) -> None:
        """Its prompt is computed: the first bytes are there."""
        endpoint = self._endpoint
        endpoint.pending_tokens = (endpoint.pending_tokens or 0) - self._missing_tokens
        self._missing_tokens = 0

    def end(self) -> None:
        """It has ended, however."""
        self.answered()
        self._endpoint.in_flight -= 1
        self._endpoint.in_flight_tokens -= self._tokens
        if not self._endpoint.in_flight and self._fleet.draining:
            self._fleet.remove_drained()
