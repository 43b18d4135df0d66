"""The stub replica and the load generator, as processes of their own on loopback."""

import urllib.error
import urllib.request

import pytest

from kvtier_bench.router import contest, replica
from kvtier_bench.router.contest import LoadProcess
from kvtier_bench.router.load import LoadOrder


def test_content_length_of_a_head() -> None:
    assert replica.content_length(b"GET / HTTP/1.1\r\nContent-Length: 12\r\nhost: x") == 12
    assert replica.content_length(b"GET / HTTP/1.1") == 0


def test_replica_answers_every_kind_of_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", ":".join(__import__("sys").path))
    with contest.replicas(2) as ports:
        for kind in ("whole", "chunks"):
            with LoadProcess(LoadOrder(port=ports[1], kind=kind, clients=2, seconds=0.05)) as load:
                outcome = load.read_outcome()
            assert outcome.requests >= 2, outcome
            assert (outcome.wrong, outcome.failed) == (0, 0), outcome
        with LoadProcess(LoadOrder(port=ports[0], kind="idle", clients=20)) as load:
            assert load.read_outcome().requests == 20
            load.end_streams()
            assert load.read_outcome().failed == 0
        url = f"http://127.0.0.1:{ports[0]}"
        assert b"num_requests_running" in urllib.request.urlopen(f"{url}/metrics").read()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}/nothing")
