"""The Prometheus metrics of an evictor, served on loopback.

A report covers a single pass; the counters add up the reports of all passes. Invariant: every
declared metric is exposed from the start, for every reason, so that a rate has its first point.
"""

import threading
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kvtier.clock import Clock, MonotonicClock
from kvtier.errors import InvalidSettings
from kvtier.evictor.events import EventAnnouncer, Publisher
from kvtier.evictor.report import REASONS, PassReport
from kvtier.metrics import evictor as metrics

HOST = "127.0.0.1"


class EvictorMeter(Collector):
    """A collector that adds up reports. `add` and scrapes may run in any threads."""

    def __init__(
        self,
        clock: Clock | None = None,
        publisher: Publisher | None = None,
        announcer: EventAnnouncer | None = None,
    ) -> None:
        """Start at zero. `publisher` and `announcer` are those of `--events`, if it is used."""
        self._clock = clock or MonotonicClock()
        self._publisher = publisher
        self._announcer = announcer
        self._ended_s = self._clock.now_s()
        self._lock = threading.Lock()
        self._last = PassReport()
        self._bytes = dict.fromkeys(REASONS, 0)
        self._files = dict.fromkeys(REASONS, 0)
        self._scanned = 0
        self._broken = 0
        self._refused = 0

    def add(self, report: PassReport) -> None:
        """Add the report of a pass."""
        with self._lock:
            self._last = report
            self._ended_s = self._clock.now_s()
            for reason, freed in report.freed.items():
                self._bytes[reason] += freed.size_bytes
                self._files[reason] += freed.files
            self._scanned += report.scanned_files
            self._broken += report.broken_files
            self._refused += report.refused_calls

    def collect(self) -> Iterable[Metric]:
        """Return the current values to the registry."""
        with self._lock:
            last = self._last
            gauges = {
                metrics.EVICT_USED_BYTES: last.left_bytes,
                metrics.EVICT_USED_INODES: last.left_inodes,
                metrics.EVICT_SHORT_BYTES: last.short_bytes,
                metrics.EVICT_UNKNOWN_FILES: last.unknown_files,
                metrics.EVICT_OWNED_SHARDS: last.shards_owned,
                metrics.EVICT_PASS_SECONDS: last.seconds,
                metrics.EVICT_PASS_AGE_SECONDS: self._clock.now_s() - self._ended_s,
            }
            counters = {
                metrics.EVICT_SCANNED_FILES: self._scanned,
                metrics.EVICT_BROKEN_FILES: self._broken,
                metrics.EVICT_FENCED_SHARDS: last.fenced,
                metrics.EVICT_REFUSED_CALLS: self._refused,
                metrics.EVICT_ANNOUNCED_BLOCKS: self._announcer.blocks if self._announcer else 0,
                metrics.EVICT_UNREAD_FILES: self._announcer.unread_files if self._announcer else 0,
                metrics.EVICT_SLOW_SUBSCRIBERS: (
                    self._publisher.slow_subscribers if self._publisher else 0
                ),
            }
            by_reason = {
                metrics.EVICT_FREED_BYTES: dict(self._bytes),
                metrics.EVICT_FREED_FILES: dict(self._files),
            }
        for metric, value in gauges.items():
            yield GaugeMetricFamily(metric.name, metric.documentation, value)
        for metric, value in counters.items():
            yield CounterMetricFamily(metric.name, metric.documentation, value)
        for metric, values in by_reason.items():
            family = CounterMetricFamily(metric.name, metric.documentation, labels=metric.labels)
            for reason, value in values.items():
                family.add_metric([reason], value)
            yield family


class EvictorMetricsServer:
    """An HTTP server that answers scrapes until the `with` block ends."""

    def __init__(self, meter: EvictorMeter, port: int) -> None:
        registry = CollectorRegistry()
        registry.register(meter)
        self._server, self._thread = start_http_server(port, HOST, registry)

    def __enter__(self) -> "EvictorMetricsServer":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve(meter: EvictorMeter, port: int) -> EvictorMetricsServer:
    """Answer scrapes on loopback, in a thread. Raises InvalidSettings if the port is in use."""
    try:
        return EvictorMetricsServer(meter, port)
    except OSError as error:
        raise InvalidSettings(
            f"--metrics-port: {port} cannot be used ({error.strerror}); choose another port"
        ) from error
