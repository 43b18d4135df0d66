import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from kvtier.cli.main import EXIT_WRONG_SETTING, kvtier

ENDPOINT = ("--endpoint", "http://127.0.0.1:8000")


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(kvtier, ["epp", *arguments])
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "no replicas"),
        (("--endpoint", "ftp://x"), "--endpoint"),
        ((*ENDPOINT, *ENDPOINT), "twice"),
        ((*ENDPOINT, "--tls-key", "k"), "give both or neither"),
        ((*ENDPOINT, "--insecure", "--tls-key", "k", "--tls-certificate", "c"), "only one of them"),
        ((*ENDPOINT, "--config-text", "a: 1", "--config-file", "x"), "only one of them"),
        ((*ENDPOINT, "--config-text", "kind: Nonsense"), "--config-text"),
        ((*ENDPOINT, "--config-file", "/nowhere"), "--config-file: /nowhere cannot be read"),
        ((*ENDPOINT, "--objective", "batch"), "write batch=-1"),
        ((*ENDPOINT, "--max-body", "lots"), "--max-body"),
        ((*ENDPOINT, "--drain", "soon"), "--drain"),
        ((*ENDPOINT, "--pool-name", "p"), "all replicas come from Kubernetes"),
        (("--pool-name", "p", "--selector", "a=b"), "give either a pool or a selector"),
        (("--selector", "a"), "--selector"),
        (("--pool-name", "p", "--pool-group", "g"), "--pool-group"),
        (("--selector", "a=b", "--target-port", "x"), "--target-port"),
        ((*ENDPOINT, "--total-queued-requests-metric", "a b"), "--total-queued-requests-metric"),
        ((*ENDPOINT, "--disable-endpoint-subset-filter"), "--disable-endpoint-subset-filter"),
    ],
)
def test_wrong_flag_is_reported_in_one_line(arguments: tuple[str, ...], said: str) -> None:
    code, output = run(*arguments)
    assert code == EXIT_WRONG_SETTING
    assert said in output.splitlines()[-1]
    assert "Traceback" not in output


def test_envoy_config_is_printed() -> None:
    code, output = run("envoy-config", "--endpoint", "127.0.0.1:8000", "--fail-close")
    assert code == 0
    assert yaml.safe_load(output)["static_resources"]["listeners"]
    code, output = run("envoy-config", *ENDPOINT, "--ca", __file__, "--picker-san", "epp.prod.svc")
    assert code == 0
    assert "sni: epp.prod.svc" in output
    code, output = run("envoy-config", "--endpoint", "replica.local:8000")
    assert code == EXIT_WRONG_SETTING
    assert "not an IP address; write 127.0.0.1:8000" in output


def test_envoy_config_warns_about_missing_ca_file() -> None:
    flags = ("envoy-config", "--endpoint", "http://127.0.0.1:8000", "--picker", "epp:9002")
    result = CliRunner().invoke(kvtier, ["epp", *flags, "--ca", "/nowhere/ca.pem"])
    assert result.exit_code == 0
    assert yaml.safe_load(result.stdout)["static_resources"]["listeners"]
    assert result.stderr == "warning: --ca: /nowhere/ca.pem does not exist on this machine\n"


KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "http://127.0.0.1:9"}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
users: [{name: u, user: {}}]
current-context: c
"""


def started(tmp_path: Path, *flags: str) -> tuple[subprocess.Popen[bytes], Path]:
    log = tmp_path / "log"
    ports = ("--grpc-port", "0", "--grpc-health-port", "0", "--metrics-port", "0")
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "from kvtier.cli.main import main; main()",
                "epp",
                *ports,
                *flags,
            ],
            stdout=out,
            stderr=out,
            env={
                **os.environ,
                "KUBECONFIG": str(tmp_path / "kubeconfig"),
                "PYTHONPATH": str(Path(__file__).parents[2] / "src"),
            },
        )
    return process, log


def wait_for(process: subprocess.Popen[bytes], log: Path, text: str) -> None:
    end_s = time.monotonic() + 20
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end_s, log.read_text()
        time.sleep(0.02)


def test_unreadable_endpoints_file_is_reported_in_one_line(tmp_path: Path) -> None:
    """Runs in a process of its own, because uvloop keeps a pipe until the process ends."""
    process, log = started(tmp_path, "--endpoints", "/nowhere/replicas.yaml")
    assert process.wait(20) == EXIT_WRONG_SETTING
    said = "error: --endpoints: /nowhere/replicas.yaml cannot be read"
    assert log.read_text().splitlines()[-1].startswith(said)
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signal_stops_process_cleanly(tmp_path: Path, number: int, code: int) -> None:
    process, log = started(tmp_path, *ENDPOINT, "--drain", "0s")
    wait_for(process, log, "listening on")
    process.send_signal(number)
    assert process.wait(20) == code
    assert "Traceback" not in log.read_text()


def test_second_signal_skips_drain(tmp_path: Path) -> None:
    process, log = started(tmp_path, *ENDPOINT, "--drain", "600s")
    wait_for(process, log, "listening on")
    process.send_signal(signal.SIGINT)
    wait_for(process, log, "stopping")
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert "Traceback" not in log.read_text()


def test_signal_stops_process_without_cluster(tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").write_text(KUBECONFIG)
    process, log = started(tmp_path, "--selector", "app=vllm")
    wait_for(process, log, "pods cannot be watched")
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert "Traceback" not in log.read_text()


def test_chart_command_line_follows_its_pool(tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").write_text(KUBECONFIG)
    flags = ("-poolName", "p", "--pool-namespace", "prod", "--zap-encoder", "json")
    process, log = started(tmp_path, *flags)
    for kind in (
        "inferencepools.inference.networking.k8s.io",
        "inferenceobjectives.llm-d.ai",
        "inferenceobjectives.inference.networking.x-k8s.io",
    ):
        wait_for(process, log, f"{kind} cannot be watched")
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    said = log.read_text()
    assert "Traceback" not in said
    assert "--zap-encoder is ignored" in said
    assert "give --host 0.0.0.0" in said
