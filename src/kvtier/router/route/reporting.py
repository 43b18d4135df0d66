"""What the router reports: Prometheus metrics, and the log of decisions for `route replay`.

Metrics are plain numbers that the data path adds to; Prometheus families are created only for a
scrape, which is cheaper than the client library's counters. Invariants: every outcome is exposed
from the start, so that rates have a first point; a decision is written in one append and begins on
a new line, even if a kill or a full disk has cut the last one; a log that cannot be written is
reported once and fails no request.
"""

import enum
import logging
import os
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from kvtier.errors import InvalidSettings
from kvtier.metrics import declaration
from kvtier.metrics import router as metrics
from kvtier.metrics.histogram import Histogram
from kvtier.router.choose.decision import RoutingDecision
from kvtier.router.choose.record import encode_line, record
from kvtier.router.fleet.members import Fleet, FleetListener, FleetMember, ReplicaHealth

_log = logging.getLogger(__name__)


class RequestOutcome(enum.Enum):
    """How a request ended."""

    OK = "ok"
    """A replica answered completely, with 1xx to 3xx."""
    REFUSED = "refused"
    """The router or a replica answered 4xx."""
    OVERLOADED = "overloaded"
    """429: no replica had room."""
    UNAVAILABLE = "unavailable"
    """503: no replica was available."""
    FAILED = "failed"
    """A replica answered with another 5xx, not at all, or not completely."""
    CANCELLED = "cancelled"
    """The client disconnected."""


class RouteMeter(Collector, FleetListener):
    """The metrics of the data path. Used, and scraped, on the event loop's thread only."""

    def __init__(
        self, fleet: Fleet, waiting: Callable[[], int], others: Iterable[Collector] = ()
    ) -> None:
        """`waiting` returns the length of the queue; `others` are exposed on the same page."""
        self._fleet = fleet
        self._waiting = waiting
        self._outcomes = dict.fromkeys(RequestOutcome, 0)
        self._sent: dict[str, int] = {}
        self.retried = 0
        self.choosing = Histogram(metrics.ROUTE_CHOOSING_SECONDS)
        self.first_byte = Histogram(metrics.ROUTE_FIRST_BYTE_SECONDS)
        self.request = Histogram(metrics.ROUTE_REQUEST_SECONDS)
        self._registry = CollectorRegistry(auto_describe=False)
        for collector in (self, *others):
            self._registry.register(collector)

    def ended(self, outcome: RequestOutcome, seconds: float) -> None:
        """Count a request that has ended after `seconds`."""
        self._outcomes[outcome] += 1
        self.request.add(seconds)

    def sent(self, replica: str) -> None:
        """Count a request that is sent to a replica."""
        self._sent[replica] = self._sent.get(replica, 0) + 1

    def removed(self, member: FleetMember) -> None:
        """Remove the series of a replica that has left the fleet."""
        self._sent.pop(member.replica.name, None)

    def render(self) -> bytes:
        """Return the page that Prometheus reads."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """Yield all families, for the registry."""
        yield _counter(
            metrics.ROUTE_REQUESTS,
            {outcome.value: count for outcome, count in self._outcomes.items()},
        )
        members = self._fleet.members
        yield _counter(
            metrics.ROUTE_SENT_REQUESTS,
            {member.replica.name: self._sent.get(member.replica.name, 0) for member in members},
        )
        retried = CounterMetricFamily(
            metrics.ROUTE_RETRIED_REQUESTS.name, metrics.ROUTE_RETRIED_REQUESTS.documentation
        )
        retried.add_metric([], self.retried)
        yield retried
        queued = metrics.ROUTE_QUEUED_REQUESTS
        yield GaugeMetricFamily(queued.name, queued.documentation, value=self._waiting())
        in_flight = {member.replica.name: member.endpoint.in_flight for member in members}
        yield _gauge(metrics.ROUTE_IN_FLIGHT_REQUESTS, in_flight)
        states = {member.replica.name: _state(member) for member in members}
        yield _gauge(metrics.ROUTE_REPLICA_STATE, states)
        for histogram in (self.choosing, self.first_byte, self.request):
            yield histogram.family()


def _state(member: FleetMember) -> int:
    if member.is_available:
        return 0
    return 1 if member.health is ReplicaHealth.HEALTHY else 2


def _counter(metric: declaration.Metric, values: dict[str, int]) -> Metric:
    family = CounterMetricFamily(metric.name, metric.documentation, labels=metric.labels)
    for label, value in values.items():
        family.add_metric([label], value)
    return family


def _gauge(metric: declaration.Metric, values: dict[str, int]) -> Metric:
    family = GaugeMetricFamily(metric.name, metric.documentation, labels=metric.labels)
    for label, value in values.items():
        family.add_metric([label], value)
    return family


class DecisionLog:
    """A file of decisions, readable by its owner only because it records requests."""

    def __init__(self, path: str) -> None:
        """Open the file for appending. Raises InvalidSettings if that fails."""
        self._path = path
        self._failed = False
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise InvalidSettings(
                f"--decisions: {path} cannot be written: {error.strerror}"
            ) from error
        self._before = b"\n" if os.fstat(self._descriptor).st_size else b""

    def add(self, decision: RoutingDecision, headers: frozenset[str]) -> None:
        """Append a decision before its endpoints change. Takes 10 us, and 3 us per endpoint."""
        text = self._before + encode_line(record(decision, headers))
        try:
            whole = os.write(self._descriptor, text) == len(text)
            self._before = b"" if whole else b"\n"
        except OSError as error:
            if not self._failed:
                _log.warning("decisions cannot be logged: %s: %s", self._path, error.strerror)
            self._failed = True

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
