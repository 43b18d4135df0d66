"""The fleet: its members, which of them may receive requests, and which are draining.

Discovery, health checks and the data path each learn something about a replica. The fleet combines
it into the answer to one question: `candidates(model)`. It belongs to the event loop's thread.

Invariants: a member is available only while it is healthy, its circuit breaker is closed, and
discovery still lists it. A member that is no longer listed is removed only after its last request
has ended, so that a reload interrupts no request.
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
"""Consecutive failed health checks after which a healthy replica receives no more requests."""


class ReplicaHealth(enum.Enum):
    """The state of a replica according to its health checks."""

    UNKNOWN = "unknown"
    """No health check has completed yet."""
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


class ModelCard(msgspec.Struct, frozen=True):
    """One entry of a replica's `/v1/models`: its id, and its JSON as the replica sent it."""

    id: str
    text: bytes


class FleetMember(msgspec.Struct, kw_only=True, eq=False):
    """A replica in the fleet. Only `Fleet` changes it."""

    replica: Replica
    endpoint: Endpoint
    health: ReplicaHealth = ReplicaHealth.UNKNOWN
    reason: str = "no health check has ended yet"
    """Why the replica receives no requests; empty if it does."""
    is_draining: bool = False
    cards: tuple[ModelCard, ...] = ()
    failures: int = 0
    """The number of consecutive failed health checks."""
    breaker: Breaker = msgspec.field(default_factory=Breaker)
    """Opens after requests that could not be delivered."""
    is_available: bool = False

    @property
    def is_cut_off(self) -> bool:
        """Whether the breaker is open because requests could not be delivered."""
        # The time distinguishes open from half-open only, so any value will do.
        return self.breaker.state(0.0) is not BreakerState.CLOSED


class FleetListener:
    """A base class for observers of a fleet's members. Each method does nothing by default."""

    def added(self, member: FleetMember) -> None:
        """Handle a replica that discovery has named; nothing has been sent to it yet."""

    def updated(self, member: FleetMember) -> None:
        """Handle new labels or models of a replica at the same address."""

    def removed(self, member: FleetMember) -> None:
        """Handle a replica that is no longer listed and whose last request has ended."""


class Fleet:
    """The members by name. Not thread-safe; only `follow` waits."""

    def __init__(self) -> None:
        self._members: dict[str, FleetMember] = {}
        self._by_endpoint: dict[Endpoint, FleetMember] = {}
        self._draining: list[FleetMember] = []
        self._by_model: dict[str, list[Endpoint]] = {}
        self._listeners: list[FleetListener] = []
        self._callbacks: list[Callable[[], None]] = []

    def add_listener(self, listener: FleetListener) -> None:
        """Notify `listener` of every member added, updated or removed from now on."""
        self._listeners.append(listener)

    def on_change(self, wake: Callable[[], None]) -> None:
        """Call `wake` whenever the result of `candidates` may have changed."""
        self._callbacks.append(wake)

    async def follow(self, discovery: ReplicaDiscovery, ready: asyncio.Event) -> None:
        """Apply each set of replicas that `discovery` yields; set `ready` after the first.

        Raises InvalidSettings.
        """
        async for replicas in discovery.watch():
            self.update(replicas)
            ready.set()

    def update(self, replicas: Sequence[Replica]) -> None:
        """Make `replicas` the whole fleet.

        A replica whose address has changed is removed and added anew.
        """
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
    def members(self) -> Sequence[FleetMember]:
        """The listed members, in the order of the list."""
        return tuple(self._members.values())

    @property
    def draining(self) -> Sequence[FleetMember]:
        """Members that are no longer listed and still have requests in flight."""
        return tuple(self._draining)

    def member(self, endpoint: Endpoint) -> FleetMember:
        """Return the member of `endpoint`, listed or draining. Raises KeyError if removed."""
        return self._by_endpoint[endpoint]

    def is_available(self, endpoint: Endpoint) -> bool:
        """Return whether `endpoint` may still receive a request, as it could when it was chosen."""
        member = self._by_endpoint.get(endpoint)
        return member is not None and member.is_available

    def candidates(self, model: str) -> Sequence[Endpoint]:
        """Return the endpoints that may receive a request for `model`; O(1)."""
        return self._by_model.get(model, ())

    def available(self) -> list[Endpoint]:
        """Return all endpoints that may receive requests."""
        return [member.endpoint for member in self._members.values() if member.is_available]

    def models(self) -> frozenset[str]:
        """Return the models that members serve, or served at their last health check."""
        names = (member.endpoint.models for member in self._members.values())
        return frozenset().union(*names)

    def mark_healthy(self, member: FleetMember, cards: Sequence[ModelCard], now_s: float) -> None:
        """Record a health check that passed; `cards` lists the models, if they were requested."""
        # The breaker opened on evidence of its own; a check may only close it after its pause.
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

    def mark_unhealthy(self, member: FleetMember, reason: str) -> None:
        """Record a health check that failed because of `reason`."""
        member.failures += 1
        member.reason = reason
        if member.health is ReplicaHealth.UNKNOWN or member.failures >= UNHEALTHY_AFTER:
            member.health = ReplicaHealth.UNHEALTHY
            if member.is_available:
                self._refresh()

    def mark_delivered(self, member: FleetMember) -> None:
        """Record a request that the replica answered."""
        member.breaker.succeeded()

    def mark_undelivered(self, member: FleetMember, now_s: float) -> None:
        """Record a request that could not be sent or received no answer."""
        member.breaker.failed(now_s)
        if member.is_available and member.is_cut_off:
            self._refresh()

    def add_load(self, endpoint: Endpoint, tokens: int, missing_tokens: int) -> "RequestLoad":
        """Add the load of a request that is about to be sent to `endpoint`.

        The prompt has `tokens` tokens, of which the engine has to compute `missing_tokens`.
        """
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
        member = FleetMember(replica=replica, endpoint=endpoint)
        self._members[replica.name] = member
        self._by_endpoint[endpoint] = member
        for listener in self._listeners:
            listener.added(member)

    def _update(self, member: FleetMember, replica: Replica) -> None:
        if member.replica == replica:
            return
        ids = frozenset(card.id for card in member.cards)
        member.replica = replica
        member.endpoint.labels = replica.labels
        member.endpoint.models = replica.models or ids
        for listener in self._listeners:
            listener.updated(member)

    def _drain(self, member: FleetMember) -> None:
        del self._members[member.replica.name]
        member.is_draining = True
        member.is_available = False
        finishing = member.endpoint.in_flight
        _log.info(
            "replica %s is no longer listed%s",
            member.replica.name,
            f"; it finishes {finishing} requests" if finishing else "",
        )
        self._draining.append(member)
        self.remove_drained()

    def remove_drained(self) -> None:
        """Remove the draining members whose last request has ended."""
        gone = [member for member in self._draining if member.endpoint.in_flight == 0]
        self._draining = [member for member in self._draining if member.endpoint.in_flight]
        for member in gone:
            del self._by_endpoint[member.endpoint]
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
        for wake in self._callbacks:
            wake()


class RequestLoad:
    """The load of one request on an endpoint, until `end` is called, as it must be."""

    __slots__ = ("_endpoint", "_fleet", "_missing_tokens", "_tokens")

    def __init__(self, fleet: Fleet, endpoint: Endpoint, tokens: int, missing_tokens: int) -> None:
        self._fleet = fleet
        self._endpoint = endpoint
        self._tokens = tokens
        self._missing_tokens = missing_tokens

    def answered(self) -> None:
        """Remove the prefill's share of the load: the first bytes of the response have arrived."""
        endpoint = self._endpoint
        endpoint.pending_tokens = (endpoint.pending_tokens or 0) - self._missing_tokens
        self._missing_tokens = 0

    def end(self) -> None:
        """Remove the request's load; it has ended, successfully or not."""
        self.answered()
        self._endpoint.in_flight -= 1
        self._endpoint.in_flight_tokens -= self._tokens
        if not self._endpoint.in_flight and self._fleet.draining:
            self._fleet.remove_drained()
