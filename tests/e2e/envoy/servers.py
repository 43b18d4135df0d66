"""The processes of the tests: replicas, `kvtier epp`, and Envoy."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
MADE = ROOT / "build" / "envoy" / "bin" / "envoy"
PATIENCE_S = 20.0


def envoy_program() -> str | None:
    """Return Envoy's path from KVTIER_ENVOY, the Makefile's build folder, or PATH."""
    return os.environ.get("KVTIER_ENVOY") or (str(MADE) if MADE.exists() else shutil.which("envoy"))


def free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_for(what: str, is_true: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    """Wait until `is_true` returns something true; fail with `what` after `patience_s`."""
    end_s = time.monotonic() + patience_s
    while not is_true():
        assert time.monotonic() < end_s, f"waited {patience_s} s for {what}"
        time.sleep(0.02)


class Program:
    """A child process whose output goes to a file."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.command = command
        self.log = log
        self._start()

    def _start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self.command, stdout=out, stderr=out, env=environment, cwd=self.log.parent
            )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        self._start()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process.returncode

    def text(self) -> str:
        return self.log.read_text(errors="replace")


class Answer:
    """An HTTP response."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def served(self) -> str | None:
        return self.headers.get("x-conformance-test-served-endpoint")

    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    port: int,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    *,
    method: str = "POST",
    path: str = "/v1/completions",
) -> Answer:
    """Send one request on a new connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(
            method, path, content, {"content-type": "application/json", **(headers or {})}
        )
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, found, response.read())
    finally:
        connection.close()


def answers(port: int, path: str = "/health") -> bool:
    try:
        return ask(port, method="GET", path=path).status == 200
    except OSError:
        return False


class Stage:
    """Replicas, a picker and an Envoy, on free ports; all are stopped at the end."""

    def __init__(self, folder: Path, envoy: str) -> None:
        self._folder = folder
        self._envoy = envoy
        self._stack = contextlib.ExitStack()
        self.replicas: dict[str, Program] = {}
        self.picker: Program | None = None

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def start(self, name: str, command: list[str]) -> Program:
        program = Program(command, self._folder / f"{name}.log")
        self._stack.callback(program.stop)
        return program

    def file(self, name: str, content: bytes) -> str:
        """Write a file; return its path."""
        path = self._folder / name
        path.write_bytes(content)
        return str(path)

    def replica(self) -> str:
        """Start a replica; return its address."""
        (port,) = free_ports(1)
        address = f"127.0.0.1:{port}"
        self.replicas[address] = self.start(
            f"replica-{port}", [sys.executable, str(HERE / "replica.py"), str(port), address]
        )
        wait_for("the replica", lambda: answers(port))
        return address

    def epp(self, addresses: list[str], *flags: str) -> tuple[int, int]:
        """Start the picker; return its gateway port and its metrics port."""
        port, health, metrics = free_ports(3)
        command = [sys.executable, "-c", "from kvtier.cli.main import main; main()", "epp"]
        for address in addresses:
            command += ["--endpoint", f"http://{address}"]
        command += ["--grpc-port", str(port), "--grpc-health-port", str(health)]
        command += ["--metrics-port", str(metrics), "--drain", "0s", *flags]
        self.picker = self.start(f"epp-{port}", command)
        self.await_epp(self.picker, metrics)
        return port, metrics

    def await_epp(self, picker: Program, metrics: int) -> None:
        def ready() -> bool:
            assert picker.process.poll() is None, picker.text()
            return answers(metrics, "/metrics") and "listening" in picker.text()

        wait_for("the picker", ready)

    def envoy(
        self,
        picker: int,
        addresses: list[str],
        *flags: str,
        change: Callable[[dict[str, Any]], None] | None = None,
        clusters: int = 1,
    ) -> int:
        """Start Envoy with the generated configuration, modified by `change`; return its port.

        `clusters` is the number of pools of this size in the result, each with a picker.
        """
        import yaml

        port, admin = free_ports(2)
        command = [sys.executable, "-c", "from kvtier.cli.main import main; main()"]
        command += ["epp", "envoy-config", "--listen", f"127.0.0.1:{port}"]
        command += ["--picker", f"127.0.0.1:{picker}", "--admin", f"127.0.0.1:{admin}", *flags]
        for address in addresses:
            command += ["--endpoint", address]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        text = subprocess.run(command, check=True, capture_output=True, env=environment).stdout
        config = yaml.safe_load(text)
        if change is not None:
            change(config)
        path = self._folder / f"envoy-{port}.yaml"
        path.write_text(yaml.safe_dump(config))
        program = self.start(
            f"envoy-{port}",
            [self._envoy, "-c", str(path), "--disable-hot-restart", "--concurrency", "1",
             "-l", "warning"],
        )  # fmt: skip

        def ready() -> bool:
            assert program.process.poll() is None, program.text()
            try:
                text = ask(admin, method="GET", path="/clusters").body.decode()
            except OSError:
                return False
            return text.count("health_flags::healthy") == clusters * (1 + len(addresses))

        wait_for("Envoy and its health checks", ready)
        self.admin = admin
        return port

    def healthy(self, address: str) -> bool:
        """Return True if Envoy considers this replica healthy."""
        clusters = ask(self.admin, method="GET", path="/clusters").body.decode()
        return f"{address}::health_flags::healthy" in clusters


@contextlib.contextmanager
def stage(folder: Path, envoy: str) -> Iterator[Stage]:
    with Stage(folder, envoy) as opened:
        yield opened
