"""The picker's Prometheus metrics, on a port of their own.

Invariant: every label value is exposed from the start, so that a rate has its first sample.
Everything here belongs to the event loop's thread, including scrapes.
"""

from collections.abc import Callable, Iterable

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kvtier.errors import InvalidSettings
from kvtier.metrics import declaration
from kvtier.metrics import router as metrics
from kvtier.metrics.histogram import Histogram
from kvtier.router.epp.observing import ResponseOutcome
from kvtier.router.epp.picking import DropReason, Placement


class PickerMeter(Collector):
    """The counters of a picker, as a Prometheus collector."""

    def __init__(
        self, ready_endpoints: Callable[[], int] = lambda: 0, others: Iterable[Collector] = ()
    ) -> None:
        """`others` are exposed together with this collector."""
        self._ready_endpoints = ready_endpoints
        self.open_streams = 0
        self._unexpected_messages = 0
        self._broken_connections = 0
        self._elsewhere = 0
        self._dropped = dict.fromkeys(DropReason, 0)
        self._tokens = dict.fromkeys(("prompt", "cached", "completion"), 0)
        self._choosing = Histogram(metrics.EPP_CHOOSING_SECONDS)
        self._first_chunk = Histogram(metrics.EPP_FIRST_CHUNK_SECONDS)
        self._registry = CollectorRegistry(auto_describe=False)
        for collector in (self, *others):
            self._registry.register(collector)

    def opened(self) -> None:
        """Count a stream that a gateway has opened."""
        self.open_streams += 1

    def closed(self) -> None:
        """Count a stream that has ended."""
        self.open_streams -= 1

    def unexpected_message(self) -> None:
        """Count a stream that ended because of a message that was not allowed."""
        self._unexpected_messages += 1

    def broke(self) -> None:
        """Count a connection that was closed because the gateway violated HTTP/2."""
        self._broken_connections += 1

    def chosen(self, seconds: float) -> None:
        """Count a placed request and the time that choosing took."""
        self._choosing.add(seconds)

    def dropped(self, reason: DropReason) -> None:
        """Count a request that was dropped."""
        self._dropped[reason] += 1

    def observed(self, placement: Placement, outcome: ResponseOutcome) -> None:
        """Count a response that was followed to its end."""
        if outcome.first_chunk_s is not None:
            self._first_chunk.add(outcome.first_chunk_s)
        if outcome.served and outcome.served != placement.endpoint.address:
            self._elsewhere += 1
        self._tokens["prompt"] += outcome.prompt_tokens
        self._tokens["cached"] += outcome.cached_tokens
        self._tokens["completion"] += outcome.completion_tokens

    def render(self) -> bytes:
        """Return the metrics in Prometheus's text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """Yield the metric families, for the registry."""
        yield _gauge(metrics.EPP_OPEN_STREAMS, self.open_streams)
        yield _gauge(metrics.EPP_READY_ENDPOINTS, self._ready_endpoints())
        yield _counter(
            metrics.EPP_DROPPED_REQUESTS,
            {reason.value: count for reason, count in self._dropped.items()},
        )
        yield _counter(metrics.EPP_BROKEN_STREAMS, {"": self._unexpected_messages})
        yield _counter(metrics.EPP_BROKEN_CONNECTIONS, {"": self._broken_connections})
        yield _counter(metrics.EPP_ELSEWHERE_REQUESTS, {"": self._elsewhere})
        yield _counter(metrics.EPP_OBSERVED_TOKENS, self._tokens)
        yield self._choosing.family()
        yield self._first_chunk.family()


def _gauge(metric: declaration.Metric, value: float) -> Metric:
    return GaugeMetricFamily(metric.name, metric.documentation, value=value)


def _counter(metric: declaration.Metric, values: dict[str, int]) -> Metric:
    family = CounterMetricFamily(metric.name, metric.documentation, labels=metric.labels)
    for label, value in values.items():
        family.add_metric([label] if metric.labels else [], value)
    return family


class MetricsServer:
    """An HTTP server that answers `GET /metrics`: call `start`, then `stop`."""

    def __init__(self, meter: PickerMeter) -> None:
        self._meter = meter
        application = web.Application()
        application.router.add_get("/metrics", self._answer)
        self._runner = web.AppRunner(application, access_log=None)

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port. Raises InvalidSettings if it cannot be bound."""
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            raise InvalidSettings(f"{host}:{port} cannot be listened on: {error}") from error
        bound: int = self._runner.addresses[0][1]
        return bound

    async def stop(self) -> None:
        """Stop listening. Idempotent."""
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        del request
        return web.Response(
            body=self._meter.render(), headers={"Content-Type": "text/plain; version=0.0.4"}
        )
