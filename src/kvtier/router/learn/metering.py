"""Prometheus metrics about the learner: scrapes, events, gaps and known blocks.

`kvtier route` and `kvtier epp` both register the collector next to their own. Scrapers, streams and
indexes keep the counters; the metric families are built when Prometheus scrapes. Invariant: the
series of a replica are removed with it, so their number is bounded by the fleet.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kvtier.index.fleet.precise import PreciseIndex
from kvtier.metrics import declaration
from kvtier.metrics import router as metrics
from kvtier.router.learn import events
from kvtier.router.learn.evictors import Evictors
from kvtier.router.learn.metrics import ScrapeCounts

_Values = Mapping[tuple[str, ...], int]


class LearningMeter(Collector):
    """A collector of the learner's metrics. Scrapes run on the event loop's thread, too."""

    def __init__(self, precise: Sequence[PreciseIndex], evictors: Evictors) -> None:
        self._precise = precise
        self._evictors = evictors
        self._streams: dict[str, events.EventCounts] = {}
        self.scrapes: Final[dict[str, ScrapeCounts]] = {}
        """The counters of each replica's scrapes."""

    def stream(self, replica: str) -> events.EventCounts:
        """Return the counters of a replica's events, the same ones for each restart of a stream."""
        return self._streams.setdefault(replica, events.EventCounts())

    def remove(self, replica: str) -> None:
        """Remove the series of a replica. Idempotent."""
        self.scrapes.pop(replica, None)
        self._streams.pop(replica, None)

    def collect(self) -> Iterable[Metric]:
        """Yield the metric families."""
        yield from self._of_scrapes()
        yield from self._of_events()
        yield _counter(metrics.ROUTER_DROPPED_BLOCKS, self._dropped())
        refused = sum(index.refused_blocks for index in self._precise)
        yield _gauge(metrics.ROUTER_REFUSED_BLOCKS, {(): refused})
        known: _Values = {
            (name,): sum(index.held_blocks(name) for index in self._precise)
            for name in self._streams
        }
        yield _gauge(metrics.ROUTER_KNOWN_BLOCKS, known)

    def _of_scrapes(self) -> Iterable[Metric]:
        scrapes: dict[tuple[str, ...], int] = {}
        for name, counts in self.scrapes.items():
            scrapes[name, "ok"] = counts.scrapes - counts.failures
            scrapes[name, "failed"] = counts.failures
        yield _counter(metrics.ROUTER_SCRAPES, scrapes)
        bad: _Values = {(name,): counts.bad_values for name, counts in self.scrapes.items()}
        yield _counter(metrics.ROUTER_BAD_VALUES, bad)
        restarts: _Values = {(name,): counts.restarts for name, counts in self.scrapes.items()}
        yield _counter(metrics.ROUTER_RESTARTS, restarts)

    def _of_events(self) -> Iterable[Metric]:
        messages: dict[tuple[str, ...], int] = {}
        gaps: dict[tuple[str, ...], int] = {}
        blocks: dict[tuple[str, ...], int] = {}
        bad: dict[tuple[str, ...], int] = {}
        for name, counts in (*self._streams.items(), *self._evictors.counts.items()):
            unread = counts.bad_messages + counts.repeated + counts.foreign
            messages[name, "read"] = max(0, counts.messages - unread)
            messages[name, "bad"] = counts.bad_messages
            messages[name, "repeated"] = counts.repeated
            messages[name, "foreign"] = counts.foreign
            gaps[name, "seen"] = counts.gaps
            gaps[name, "filled"] = counts.replays
            gaps[name, "forgotten"] = counts.resyncs
            gaps[name, "restart"] = counts.restarts
            blocks[name,] = counts.blocks
            bad[name,] = counts.bad_events
        yield _counter(metrics.ROUTER_MESSAGES, messages)
        yield _counter(metrics.ROUTER_GAPS, gaps)
        yield _counter(metrics.ROUTER_EVENT_BLOCKS, blocks)
        yield _counter(metrics.ROUTER_BAD_EVENTS, bad)

    def _dropped(self) -> _Values:
        found: Counter[str] = Counter()
        for index in self._precise:
            found.update(index.ignored_blocks)
        return {(why,): found[why] for why in declaration.LABEL_VALUES["why"]}


def _counter(metric: declaration.Metric, values: _Values) -> Metric:
    family = CounterMetricFamily(metric.name, metric.documentation, labels=metric.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def _gauge(metric: declaration.Metric, values: _Values) -> Metric:
    family = GaugeMetricFamily(metric.name, metric.documentation, labels=metric.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family
