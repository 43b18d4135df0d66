"""`kvtier serve` as users run it, in processes that are not forked from one that imported vLLM.

One server answers requests, shows its metrics and ends; two others, started beside it in `make
test-all`, must refuse to start.
"""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvtier.metrics.declaration import MetricKind
from kvtier.metrics.engine import METRICS
from kvtier_bench.processes import session_processes, stop_session
from tests.engine.engine import environment

BLOCK = 128
SIZE = 1_700
BLOCKS = (SIZE - 1) // BLOCK
START_S = 240.0
HOST = "127.0.0.1"
ENGINE_FLAGS = [
    *("--dtype", "float32", "--enforce-eager", "--max-model-len", "4096"),
    *("--num-gpu-blocks-override", "40", "--enable-prompt-tokens-details"),
]


class Server(NamedTuple):
    process: subprocess.Popen[bytes]
    port: int
    folder: Path
    """The folder of the disk tier."""
    log: Path

    def ask(self, path: str, body: dict[str, Any] | None = None, verb: str = "POST") -> str:
        request = urllib.request.Request(
            f"http://{HOST}:{self.port}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            method=verb,
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            text: str = response.read().decode()
        return text

    def complete(self, ids: list[int]) -> tuple[str, int]:
        """Return the text, and how many prompt tokens were not computed."""
        body = {"model": "served", "prompt": ids, "max_tokens": 16, "temperature": 0}
        answer = json.loads(self.ask("/v1/completions", body))
        return answer["choices"][0]["text"], answer["usage"]["prompt_tokens_details"][
            "cached_tokens"
        ]

    def samples(self) -> dict[tuple[str, str], float]:
        """Return the value of every sample of kvtier's by (name, tier)."""
        families = text_string_to_metric_families(self.ask("/metrics", verb="GET"))
        return {
            (sample.name, sample.labels.get("tier", "")): sample.value
            for family in families
            for sample in family.samples
            if sample.name.startswith("kvtier_")
        }


def serve(model: Path, log: Path, port: int, folder: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            [
                *(sys.executable, "-c", "from kvtier.cli.main import main; main()"),
                *("serve", str(model), "--ram", "256MiB", "--disk", f"{folder}=512MiB"),
                *("--port", str(port), "--", "--served-model-name", "served", *ENGINE_FLAGS),
            ],
            env={**environment(), "VLLM_SERVER_DEV_MODE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def free_port() -> int:
    with socket.create_server((HOST, 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def wait_for(condition: Callable[[], bool], within_s: float, what: Callable[[], str]) -> None:
    give_up_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < give_up_s, what()
        time.sleep(0.2)


def tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-30:])


@pytest.fixture(scope="module")
def server(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    port = free_port()
    slab, log = folder / "disk", folder / "log"
    running = Server(serve(smollm2, log, port, slab), port, slab, log)

    def is_healthy() -> bool:
        assert running.process.poll() is None, tail(log)
        try:
            running.ask("/health", verb="GET")
        except (urllib.error.URLError, ConnectionError):
            return False
        return True

    try:
        wait_for(is_healthy, START_S, lambda: tail(log))
        yield running
    finally:
        stop_session(running.process, 30.0)


def test_serve_prints_the_plain_vllm_command(server: Server) -> None:
    lines = server.log.read_text(errors="replace").splitlines()
    plain = next(line for line in lines if "vllm.entrypoints.openai.api_server" in line)
    assert '"spec_name": "KVTier"' in plain
    assert f"--host {HOST}" in plain
    assert "kvtier serve" not in plain


def test_serve_exposes_every_metric_on_the_engines_page(server: Server, corpus: list[int]) -> None:
    server.complete(corpus[:SIZE])
    found = {name for name, _ in server.samples()}
    suffixes = {
        MetricKind.COUNTER: "_total",
        MetricKind.GAUGE: "",
        MetricKind.HISTOGRAM: "_count",
    }
    declared = {metric.name + suffixes[metric.kind] for metric in METRICS}
    assert found >= declared


def test_serve_reports_capacity_in_blocks_and_tokens(server: Server) -> None:
    samples = server.samples()
    for tier in ("ram", "disk"):
        blocks = samples["kvtier_capacity_blocks", tier]
        assert blocks > 0
        assert samples["kvtier_capacity_tokens", tier] == blocks * BLOCK


def test_serve_counts_ram_hit_after_device_reset(server: Server, corpus: list[int]) -> None:
    ids = corpus[8_000 : 8_000 + SIZE]
    cold, nothing = server.complete(ids)
    assert nothing == 0
    server.ask("/reset_prefix_cache")
    before = server.samples()
    warm, cached = server.complete(ids)
    assert (warm, cached) == (cold, BLOCKS * BLOCK)
    name = "kvtier_hit_tokens_total", "ram"
    wait_for(
        lambda: server.samples()[name] - before[name] == BLOCKS * BLOCK,
        30,
        lambda: f"{before[name]} -> {server.samples()[name]}",
    )


@pytest.fixture(scope="module")
def refused(
    server: Server, smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[subprocess.Popen[bytes], Path]]]:
    """Two servers that must fail to start, side by side because each takes a minute."""
    folder = tmp_path_factory.mktemp("refused")
    slab = folder / "another model's"
    slab.mkdir()
    manifest = json.loads((server.folder / "manifest.json").read_text())
    manifest["space"]["weights"] = "others"
    (slab / "manifest.json").write_text(json.dumps(manifest))
    starts = {
        name: (serve(smollm2, folder / name, free_port(), disk), folder / name)
        for name, disk in (("in use", server.folder), ("another model", slab))
    }
    yield starts
    for process, _ in starts.values():
        stop_session(process, 5.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("in use", "is in use by process"),
        ("another model", "holds a slab that does not fit this engine (weights: "),
    ],
)
def test_serve_with_unusable_disk_ends_with_the_reason(
    refused: dict[str, tuple[subprocess.Popen[bytes], Path]], name: str, said: str
) -> None:
    process, log = refused[name]
    wait_for(lambda: process.poll() is not None, START_S, lambda: tail(log))
    assert process.returncode != 0
    wait_for(lambda: not session_processes(process.pid), 30, lambda: "processes are left")
    lines = [line for line in log.read_text(errors="replace").splitlines() if said in line]
    assert lines, tail(log)
    assert all("disk.path: " in line for line in lines)


def test_serve_ends_on_sigterm_and_leaves_nothing(server: Server) -> None:
    assert stop_session(server.process, 60.0), "something had to be killed"
    assert session_processes(server.process.pid) == []
    assert "kvtier has a bug" not in server.log.read_text(errors="replace")
