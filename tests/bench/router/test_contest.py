import sys
from pathlib import Path

import pytest

from kvtier_bench.processes import session_processes
from kvtier_bench.router import contest


def test_contestants_include_the_peer_if_installed(tmp_path: Path) -> None:
    assert set(contest.contestants(tmp_path / "none", tmp_path)) == {
        contest.ROUND_ROBIN,
        contest.DEFAULT,
    }
    peer = tmp_path / "vllm-router"
    peer.touch()
    assert contest.contestants(peer, tmp_path)[contest.PEER_CACHE_AWARE][-1] == "cache_aware"


def test_router_runs_in_one_session_and_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    serves = (
        "import http.server, sys\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self): self.send_response(200); self.end_headers()\n"
        "http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), H).serve_forever()\n"
    )
    commands = {
        "good": [sys.executable, "-c", serves, "{port}"],
        "bad": [sys.executable, "-c", "print('it fails')"],
    }
    with contest.routers({"bad": commands["bad"]}, [1], tmp_path) as running:
        assert running == []
    assert "it fails" in (tmp_path / "bad.log").read_text()
    with contest.routers({"good": commands["good"]}, [1], tmp_path) as [router]:
        assert router.cpu_s() > 0
        assert router.resident_bytes() > 1_000_000
    assert session_processes(router.process.pid) == []
