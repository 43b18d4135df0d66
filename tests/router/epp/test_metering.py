import asyncio
import urllib.request
from collections.abc import Iterable

import pytest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kvtier.errors import InvalidSettings
from kvtier.router.choose.base import Endpoint
from kvtier.router.epp.metering import MetricsServer, PickerMeter
from kvtier.router.epp.observing import ResponseOutcome
from kvtier.router.epp.picking import DropReason, Placement


def sample(meter: PickerMeter, name: str) -> float:
    (line,) = [line for line in meter.render().decode().splitlines() if line.startswith(name + " ")]
    return float(line.rpartition(" ")[2])


def test_every_drop_reason_is_exposed_from_start() -> None:
    meter = PickerMeter(lambda: 3)
    for reason in DropReason:
        assert sample(meter, f'kvtier_epp_dropped_requests_total{{drop="{reason.value}"}}') == 0
    assert sample(meter, "kvtier_epp_ready_endpoints") == 3


def test_events_are_counted() -> None:
    meter = PickerMeter()
    meter.opened()
    meter.opened()
    meter.closed()
    meter.chosen(0.002)
    meter.dropped(DropReason.SATURATED)
    meter.unexpected_message()
    endpoint = Endpoint(name="a", address="a:1", models=frozenset())
    choice = Placement(endpoint=endpoint, addresses=["a:1"])
    meter.observed(choice, ResponseOutcome(served="b:1", first_chunk_s=0.2, completion_tokens=4))
    meter.observed(choice, ResponseOutcome(served="a:1"))
    meter.observed(choice, ResponseOutcome())
    assert sample(meter, "kvtier_epp_open_streams") == 1
    assert sample(meter, "kvtier_epp_choosing_seconds_count") == 1
    assert sample(meter, 'kvtier_epp_dropped_requests_total{drop="rejected-saturated"}') == 1
    assert sample(meter, "kvtier_epp_broken_streams_total") == 1
    assert sample(meter, "kvtier_epp_elsewhere_requests_total") == 1
    assert sample(meter, 'kvtier_epp_observed_tokens_total{counted="completion"}') == 4
    assert sample(meter, "kvtier_epp_first_chunk_seconds_count") == 1


def test_metrics_server_exposes_metrics_and_reports_taken_port() -> None:
    async def run() -> None:
        first, second = MetricsServer(PickerMeter()), MetricsServer(PickerMeter())
        port = await first.start("127.0.0.1", 0)
        url = f"http://127.0.0.1:{port}/metrics"
        text = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
        assert "kvtier_epp_open_streams 0.0" in text
        with pytest.raises(InvalidSettings, match=str(port)):
            await second.start("127.0.0.1", port)
        await first.stop()
        await second.stop()

    asyncio.run(run())


class Another(Collector):
    """A collector of another component."""

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily("kvtier_another", "Of another.", value=5)


def test_other_collectors_are_exposed() -> None:
    assert b"kvtier_another 5.0" in PickerMeter(others=[Another()]).render()
