import http.client
import os
import sys

import pytest

from kvtier.router.epp.envoy import Address, EnvoySettings, bootstrap
from kvtier_bench.router import answers, epp


def cost(picker_us: float) -> epp.PickerCost:
    return epp.PickerCost(picker_us=picker_us, envoy_us=100.0, p50_s=0.15, requests=10, wrong=0)


def test_cpu_rows_compare_medians_with_full_duplex() -> None:
    costs = {setup: [cost(500.0), cost(100.0), cost(90.0)] for setup in epp.SETUPS}
    costs[epp.DUPLEX] = [cost(1000.0)]
    rows = {row.name: row for row in epp._cpu_rows(costs)}
    closing = rows["picker, 64 chunks, closed after the choice"]
    assert (closing.value, closing.ratio, closing.met) == (100.0, 0.1, True)
    assert "wrong answers 0" in closing.note
    assert rows["picker, 64 chunks, full duplex"].met is None
    assert "picker, 64 chunks, Envoy alone" not in rows
    assert rows["picker, 64 chunks, full duplex both ways, closed after the choice"].met is True
    costs[epp.CLOSING] = [cost(201.0)]
    rows = {row.name: row for row in epp._cpu_rows(costs)}
    assert rows["picker, 64 chunks, closed after the choice"].met is False


def test_added_latency_is_the_difference_of_medians() -> None:
    (row,) = epp._tail_rows({epp.ALONE: [0.001, 0.002, 0.9], epp.CLOSING: [0.006, 0.005, 0.5]})
    assert round(row.value, 3) == 4.0
    assert row.met is True


def test_quantile_is_a_measured_value() -> None:
    assert epp._quantile([3.0, 1.0, 2.0], 0.99) == 3.0
    assert epp._quantile(list(range(1, 101)), 0.99) == 99


def test_envoy_without_picker_has_no_external_processing() -> None:
    address = Address("127.0.0.1", 1)
    config = bootstrap(EnvoySettings(listen=address, picker=address, replicas=[address]))
    epp._without_picker(config)
    assert "ext_proc" not in str(config)
    assert len(config["static_resources"]["clusters"]) == 1


def test_setups_differ_from_each_other() -> None:
    assert len({setup.name for setup in epp.SETUPS}) == len(set(epp.SETUPS)) == 5
    assert epp.DUPLEX.is_observed
    assert epp.CLOSING_DUPLEX.shows_responses
    assert not epp.CLOSING_DUPLEX.is_observed


def test_replica_of_the_benchmark_accepts_chunked_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    body = answers.make_request(7).partition(b"\r\n\r\n")[2]
    with epp._replica() as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("POST", "/v1/completions", iter([body[:9], body[9:]]))
        assert connection.getresponse().read() == answers.whole_answer(answers.make_mark(7))
        connection.close()
