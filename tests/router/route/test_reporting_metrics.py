from collections.abc import Iterable

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kvtier.metrics import declaration
from kvtier.metrics import router as metrics
from kvtier.router.fleet.members import UNHEALTHY_AFTER, Fleet, ModelCard
from kvtier.router.fleet.replicas import Replica
from kvtier.router.route.reporting import RequestOutcome, RouteMeter


def exposed(meter: RouteMeter) -> dict[str, float]:
    lines = [line for line in meter.render().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def meter_of(*names: str) -> tuple[Fleet, RouteMeter]:
    fleet = Fleet()
    fleet.update([Replica(name=name, url=f"http://{name}:1") for name in names])
    return fleet, RouteMeter(fleet, lambda: 3)


def test_every_outcome_is_exposed_from_start() -> None:
    _, meter = meter_of()
    found = exposed(meter)
    for outcome in RequestOutcome:
        assert found[f'kvtier_route_requests_total{{outcome="{outcome.value}"}}'] == 0
    assert {outcome.value for outcome in RequestOutcome} == set(declaration.LABEL_VALUES["outcome"])
    assert found["kvtier_route_queued_requests"] == 3


def test_every_declared_metric_is_exposed() -> None:
    _, meter = meter_of("a")
    text = meter.render().decode()
    for metric in metrics.ROUTE_METRICS:
        assert f"# HELP {metric.name}" in text


def test_requests_are_counted() -> None:
    fleet, meter = meter_of("a", "b")
    meter.ended(RequestOutcome.OK, 0.02)
    meter.ended(RequestOutcome.OK, 400.0)
    meter.sent("a")
    meter.retried += 1
    stay = fleet.add_load(fleet.members[0].endpoint, 1, 1)
    found = exposed(meter)
    assert found['kvtier_route_requests_total{outcome="ok"}'] == 2
    assert found['kvtier_route_sent_requests_total{replica="a"}'] == 1
    assert found['kvtier_route_sent_requests_total{replica="b"}'] == 0
    assert found["kvtier_route_retried_requests_total"] == 1
    assert found['kvtier_route_in_flight_requests{replica="a"}'] == 1
    assert found['kvtier_route_request_seconds_bucket{le="0.025"}'] == 1
    assert found["kvtier_route_request_seconds_count"] == 2
    stay.end()


def test_replica_state_is_exposed() -> None:
    fleet, meter = meter_of("a")
    (a,) = fleet.members

    def state() -> float:
        return exposed(meter)['kvtier_route_replica_state{replica="a"}']

    assert state() == 2
    fleet.mark_healthy(a, [ModelCard("m", b"{}")], 0.0)
    assert state() == 0
    for _ in range(5):
        fleet.mark_undelivered(a, 0.0)
    assert state() == 1
    for _ in range(UNHEALTHY_AFTER):
        fleet.mark_unhealthy(a, "gone")
    assert state() == 2


def test_removed_replica_has_no_series() -> None:
    fleet, meter = meter_of("a", "b")
    fleet.add_listener(meter)
    meter.sent("a")
    fleet.update([fleet.members[1].replica])
    assert 'replica="a"' not in meter.render().decode()
    fleet.update([Replica(name="a", url="http://a:1")])
    assert exposed(meter)['kvtier_route_sent_requests_total{replica="a"}'] == 0


class Another(Collector):
    """A collector with a metric of its own."""

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily("kvtier_another", "Of another.", value=5)


def test_metrics_of_other_collectors_are_exposed() -> None:
    assert b"kvtier_another 5.0" in RouteMeter(Fleet(), lambda: 3, [Another()]).render()
