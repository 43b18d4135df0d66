"""What the picker has done, as Prometheus metrics on a port of their own.

Invariant: every outcome and reason is exposed from the start, so that a rate has its first
point. Belongs to the event loop's thread, scrapes too.
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
    """Sums."""

    def __init__(
        self, ready_endpoints: Callable[[], int] = lambda: 0, others: Iterable[Collector] = ()
    ) -> None:
        """`others`: exposed beside it."""
        self._ready_endpoints = ready_endpoints
        self.open_streams = 0
        self._out_of_turn = 0
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
        """A gateway began a stream."""
        self.open_streams += 1

    def closed(self) -> None:
        """It has ended."""
        self.open_streams -= 1

    def out_of_turn(self) -> None:
        """A gateway sent what cannot come then."""
        self._out_of_turn += 1

    def broke(self) -> None:
        """A gateway's connection was ended for what came on it."""
        self._broken_connections += 1

    def chosen(self, seconds: float) -> None:
        """A request was placed."""
        self._choosing.add(seconds)

    def dropped(self, reason: DropReason) -> None:
        """A request was not."""
        self._dropped[reason] += 1

    def observed(self, choice: Placement, outcome: ResponseOutcome) -> None:
        """A response was followed to its end."""
        if outcome.first_chunk_s is not None:
            self._first_chunk.add(outcome.first_chunk_s)
        if outcome.served and outcome.served != choice.endpoint.address:
            self._elsewhere += 1
        self._tokens["prompt"] += outcome.prompt_tokens
        self._tokens["cached"] += outcome.cached_tokens
        self._tokens["completion"] += outcome.completion_tokens

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """For the registry."""
        yield _gauge(metrics.EPP_OPEN_STREAMS, self.open_streams)
        yield _gauge(metrics.EPP_READY_ENDPOINTS, self._ready_endpoints())
        yield _counter(
            metrics.EPP_DROPPED_REQUESTS,
            {reason.value: count for reason, count in self._dropped.items()},
        )
        yield _counter(metrics.EPP_BROKEN_STREAMS, {"": self._out_of_turn})
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
    """`GET /metrics`. `start`, then `stop`."""

    def __init__(self, meter: PickerMeter) -> None:
        self._meter = meter
        application = web.Application()
        application.router.add_get("/metrics", self._answer)
        self._runner = web.AppRunner(application, access_log=None)

    async def start(self, host: str, port: int) -> int:
        """Returns the port. Raises InvalidSettings where it is taken."""
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            raise InvalidSettings(f"{host}:{port} cannot be listened on: {error}") from error
        bound: int = self._runner.addresses[0][1]
        return bound

    async def stop(self) -> None:
        """Idempotent."""
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        del request
        return web.Response(
            body=self._meter.render(), headers={"Content-Type": "text/plain; version=0.0.4"}
        )
