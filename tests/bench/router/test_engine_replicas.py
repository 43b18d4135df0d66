import json
from pathlib import Path

import pytest

from kvtier_bench.client import complete
from kvtier_bench.processes import session_processes
from kvtier_bench.router import engine_replicas
from kvtier_bench.router.engine_replicas import read_counters, replicas, settings
from kvtier_bench.server import ServerFailed
from tests.bench.router.test_traffic import small


def test_replicas_differ_only_in_core_and_ports(tmp_path: Path) -> None:
    first, second = (settings(Path("m"), small(), tmp_path, n, (7, 8 + n)) for n in (0, 1))
    assert (first.omp_cores, second.omp_cores) == ("0", "1")
    assert first.kv_transfer == second.kv_transfer
    assert first.kv_transfer is not None
    assert first.kv_transfer["kv_connector_extra_config"]["self_describing_kv_events"]
    assert first.kv_transfer["kv_connector_extra_config"]["ram"] == "48MiB"
    command = first.arguments(80)
    assert "--enable-scale-out" in command
    events = json.loads(command[command.index("--kv-events-config") + 1])
    assert (events["endpoint"], events["replay_endpoint"]) == ("tcp://*:7", "tcp://*:8")


def test_replicas_count_their_requests_and_leave_no_process(stand_in: Path, tmp_path: Path) -> None:
    with replicas(tmp_path, small(), tmp_path) as started:
        assert len({one.url for one in started}) == engine_replicas.REPLICAS
        before = [read_counters(one) for one in started]
        for _ in range(2):
            complete(started[0].server.endpoint, "one two", 1)
        after = [read_counters(one) for one in started]
        assert [now.requests - then.requests for now, then in zip(after, before, strict=True)] == [
            2,
            0,
        ]
        assert after[0].cpu_s > 0
        sessions = [one.server._process.pid for one in started if one.server._process]
    assert len(sessions) == engine_replicas.REPLICAS
    assert not any(session_processes(session) for session in sessions)


def test_replica_that_does_not_start_stops_all(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_FAILS", "1")
    with pytest.raises(ServerFailed, match="no such model"), replicas(tmp_path, small(), tmp_path):
        pass
