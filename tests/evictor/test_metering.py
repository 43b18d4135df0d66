import socket
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from kvtier.clock import VirtualClock
from kvtier.errors import InvalidSettings
from kvtier.evictor.metering import HOST, EvictorMeter, serve
from kvtier.evictor.report import REASONS, PassReport
from kvtier.metrics.declaration import LABEL_VALUES
from kvtier.metrics.evictor import EVICTOR_METRICS


def text(meter: EvictorMeter) -> str:
    registry = CollectorRegistry()
    registry.register(meter)
    return generate_latest(registry).decode()


def test_metrics_are_all_exposed_from_start() -> None:
    exposed = text(EvictorMeter())
    for metric in EVICTOR_METRICS:
        assert f"# TYPE {metric.name}" in exposed
    for reason in REASONS:
        assert f'kvtier_evict_freed_files_total{{reason="{reason}"}} 0.0' in exposed
    assert LABEL_VALUES["reason"] == REASONS


def test_meter_adds_up_passes() -> None:
    meter = EvictorMeter()
    for _ in range(2):
        report = PassReport(left_bytes=5, scanned_files=10, shards_owned=17, fenced=3)
        report.freed["ttl"].add(100)
        meter.add(report)
    exposed = text(meter).splitlines()
    for line in (
        'kvtier_evict_freed_bytes_total{reason="ttl"} 200.0',
        'kvtier_evict_freed_files_total{reason="ttl"} 2.0',
        "kvtier_evict_scanned_files_total 20.0",
        "kvtier_evict_used_bytes 5.0",
        "kvtier_evict_owned_shards 17.0",
        "kvtier_evict_fenced_shards_total 3.0",
    ):
        assert line in exposed


def test_pass_age_grows_while_pass_hangs() -> None:
    clock = VirtualClock()
    meter = EvictorMeter(clock)
    clock.advance(5)
    assert "kvtier_evict_pass_age_seconds 5.0" in text(meter)
    meter.add(PassReport())
    clock.advance(600)
    assert "kvtier_evict_pass_age_seconds 600.0" in text(meter)


def test_serve_rejects_port_in_use() -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InvalidSettings, match=f"--metrics-port: {port}"):
            serve(EvictorMeter(), port)


def test_serve_answers_on_loopback_only() -> None:
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    with serve(EvictorMeter(), port):
        with urllib.request.urlopen(f"http://{HOST}:{port}/metrics") as answer:
            assert b"kvtier_evict_owned_shards 0.0" in answer.read()
        with socket.socket() as other, pytest.raises(OSError, match="refused"):
            other.connect(("127.0.0.2", port))
