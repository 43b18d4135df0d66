import json
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

import kvtier_bench.server
from kvtier.clock import VirtualClock
from kvtier_bench.client import complete
from kvtier_bench.processes import session_processes
from kvtier_bench.runs import lower_tier_hits
from kvtier_bench.server import (
    Server,
    ServerFailed,
    ServerSettings,
    free_port,
    relevant_lines,
    usual_dtype,
)

TRANSFER = {"kv_connector": "OffloadingConnector", "kv_connector_extra_config": {"ram": "1GiB"}}


def settings(tmp_path: Path, **changes: object) -> ServerSettings:
    fields = {"model": Path("model"), "device_blocks": 100, "log": tmp_path / "logs" / "s.log"}
    return ServerSettings(**{**fields, **changes})  # type: ignore[arg-type]


def silent(news: str) -> None:
    pass


def test_arguments_differ_only_in_the_connector(tmp_path: Path) -> None:
    alone = settings(tmp_path).arguments(8000)
    tiered = settings(tmp_path, kv_transfer=TRANSFER).arguments(8000)
    assert tiered[: len(alone)] == alone
    flag, config = tiered[len(alone) :]
    assert flag == "--kv-transfer-config"
    assert json.loads(config) == TRANSFER
    environments = [settings(tmp_path, kv_transfer=each).environment() for each in (None, TRANSFER)]
    assert environments[0] == environments[1]


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ("flags\t\t: fpu avx2 avx512f\n", "auto"),
        ("flags\t\t: fpu avx2\n", "float32"),
        ("Features\t: fp asimd bf16\n", "auto"),
        (None, "auto"),
    ],
)
def test_dtype_is_float32_on_x86_without_avx512(
    tmp_path: Path, flags: str | None, dtype: str
) -> None:
    info = tmp_path / "cpuinfo"
    if flags is not None:
        info.write_text(f"processor\t: 0\nmodel name\t: avx512f\n{flags}")
    assert usual_dtype(info) == dtype


def test_environment_binds_threads_and_disables_the_hub(tmp_path: Path) -> None:
    environment = settings(tmp_path).environment()
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "0"
    assert environment["HF_HUB_OFFLINE"] == "1"


def test_python_path_puts_extra_folders_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "src")
    peers = settings(tmp_path, python_path=(tmp_path,)).environment()
    assert peers["PYTHONPATH"] == f"{tmp_path}{os.pathsep}src"
    assert settings(tmp_path).environment()["PYTHONPATH"] == "src"


def test_server_starts_answers_and_leaves_no_process(stand_in: Path, tmp_path: Path) -> None:
    with Server(settings(tmp_path, kv_transfer=TRANSFER)) as server:
        assert server.start(silent) >= 0
        leader = next(iter(_pids_of(server)))
        assert complete(server.endpoint, [1, 2], 1).text == "3"
        assert server.cpu_s() > 0
    assert session_processes(leader) == []
    server.stop()
    assert server.cpu_s() == 0.0


def test_stop_from_two_threads_returns_after_the_server_has_ended(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking, look_on = threading.Event(), threading.Event()

    def look_slowly(session: int, under: str) -> set[Path]:
        looking.set()
        look_on.wait(10)
        return set()

    monkeypatch.setattr(kvtier_bench.server, "mapped_files", look_slowly)
    server = Server(settings(tmp_path))
    server.start(silent)
    leader = next(iter(_pids_of(server)))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(server.stop)
        assert looking.wait(10)
        monkeypatch.setattr(kvtier_bench.server, "mapped_files", lambda session, under: set())
        second = pool.submit(server.stop)
        wait([second], timeout=0.5)  # enough time to return too early
        look_on.set()
        second.result()
        assert session_processes(leader) == []
        first.result()


def test_reset_device_keeps_the_tiers(stand_in: Path, tmp_path: Path) -> None:
    with Server(settings(tmp_path, kv_transfer=TRANSFER)) as server:
        server.start(silent)
        prompt = list(range(300))
        complete(server.endpoint, prompt, 1)
        server.reset_device()
        assert complete(server.endpoint, prompt, 1).cached_tokens == 256
        assert lower_tier_hits(server.metrics()) == {"ram": 256, "disk": 0}
        server.reset_all()
        assert complete(server.endpoint, prompt, 1).cached_tokens == 0


def test_server_that_ends_at_start_shows_its_log(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_FAILS", "1")
    with pytest.raises(ServerFailed, match="told to fail"):
        Server(settings(tmp_path)).start(silent)


def test_server_that_never_answers_is_stopped(stand_in: Path, tmp_path: Path) -> None:
    package = stand_in / "vllm" / "entrypoints" / "openai" / "api_server.py"
    package.write_text("import time\nif __name__ == '__main__':\n    time.sleep(600)\n")
    server = Server(settings(tmp_path, start_timeout_s=20.0), VirtualClock())
    with pytest.raises(ServerFailed, match="not ready after 20 s"):
        server.start(silent)
    assert server.cpu_s() == 0.0


def test_failed_request_shows_the_servers_log(stand_in: Path, tmp_path: Path) -> None:
    package = stand_in / "vllm" / "entrypoints" / "openai" / "api_server.py"
    broken = package.read_text().replace("sum(prompt)", "prompt[99]")
    package.write_text(broken)
    server = Server(settings(tmp_path))
    with pytest.raises(ServerFailed, match="IndexError: list index out of range"):
        _ask_once(server)
    assert server.cpu_s() == 0.0


def test_relevant_lines_are_the_first_exception_of_a_log() -> None:
    before = [f"line {n}" for n in range(100)]
    cause = "(EngineCore) kvtier.errors.InvalidSettings: ram: larger than the machine"
    told = relevant_lines([*before, cause, *before, "RuntimeError: engine dead", *before])
    assert cause in told
    assert told[0] == "line 88"
    assert relevant_lines(before) == before[-25:]


def test_start_reports_progress(stand_in: Path, tmp_path: Path) -> None:
    news: list[str] = []
    with Server(settings(tmp_path)) as server:
        server.start(news.append)
    assert news[0] == "starting vLLM"
    assert "waiting for vLLM" in news[1]


def test_free_port_can_be_bound() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free_port()))


def _ask_once(server: Server) -> None:
    with server:
        server.start(silent)
        complete(server.endpoint, [1], 1)


def _pids_of(server: Server) -> list[int]:
    process = server._process
    assert process is not None
    return [stat.pid for stat in session_processes(process.pid)]
