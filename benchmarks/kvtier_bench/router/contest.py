"""The contestants: routers that run as processes of their own before the same replicas.

A router is started in a session of its own and stopped with all its processes. On a machine with
several cores, routers under load are bound to one core, so that none gains from using more; clients
and stub replicas run on the others.

Before real engines, each router is configured as its authors intend, and otherwise keeps its
defaults. The default profile of kvtier follows KV events; 2:2:1:1 is the configuration of the
CPU-offloading guide with its estimates; both get the model's tokenizer. The peer's `kv_aware` gets
the events too, with the engine's block size.
"""

import contextlib
import http.client
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import msgspec

from kvtier.clock import MonotonicClock
from kvtier_bench.processes import PROC, session_cpu_s, session_processes, stop_session
from kvtier_bench.router.engine_replicas import EngineReplica
from kvtier_bench.router.load import LoadOrder, LoadOutcome
from kvtier_bench.server import HOST, ServerFailed, free_port

ROUND_ROBIN: Final = "kvtier route, round-robin"
DEFAULT: Final = "kvtier route, default profile"
PEER_ROUND_ROBIN: Final = "vllm-router, round_robin"
PEER_CACHE_AWARE: Final = "vllm-router, cache_aware"
PEER_KV_AWARE: Final = "vllm-router, kv_aware"
PEER: Final = Path("build/peers/router/bin/vllm-router")
"""The program that benchmarks/peers/router/install.sh installs."""

_START_S: Final = 120.0
_GRACE_S: Final = 5.0
_CORES: Final = sorted(os.sched_getaffinity(0))
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_NO_FILE_NAME: Final = str.maketrans({" ": "-", ",": None, ":": "-"})
TIERED: Final = "kvtier route, 2:2:1:1"
OURS: Final = (DEFAULT, TIERED)
OTHERS: Final = (
    ROUND_ROBIN,
    PEER_ROUND_ROBIN,
    PEER_CACHE_AWARE,
    PEER_KV_AWARE,
)
PROFILE: Final = "tiered-prefix-cache.yaml"
BLOCK_TOKENS: Final = 128
"""Tokens in a block of vLLM on a CPU."""


class RunningRouter:
    """A router that runs in a process of its own."""

    def __init__(self, name: str, port: int, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.port = port
        self.process = process

    def cpu_s(self) -> float:
        """Return the CPU seconds that all its processes have used so far."""
        return session_cpu_s(self.process.pid)

    def resident_bytes(self) -> int:
        """Return the resident memory of all its processes."""
        pids = [one.pid for one in session_processes(self.process.pid)]
        pages = [int((PROC / str(pid) / "statm").read_text().split()[1]) for pid in pids]
        return sum(pages) * _PAGE_BYTES


class LoadProcess:
    """A load generator in a process of its own, which works on one order."""

    def __init__(self, order: LoadOrder) -> None:
        self._process = _start([sys.executable, "-m", "kvtier_bench.router.load"])
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(order) + b"\n")
        self._process.stdin.flush()

    def read_outcome(self) -> LoadOutcome:
        """Wait for the next outcome and return it. Raises ServerFailed if the process has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ServerFailed("the load generator ended without an outcome")
        return msgspec.json.decode(line, type=LoadOutcome)

    def end_streams(self) -> None:
        """Have the process report its idle streams once more and close them."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()

    def __enter__(self) -> "LoadProcess":
        return self

    def __exit__(self, *_: object) -> None:
        _end(self._process)


def contestants(peer: Path, scratch: Path, model: str = "m") -> dict[str, list[str]]:
    """Return each router's command without its replicas, by name.

    `{port}` in a command stands for the port to listen on. The peer takes part if it is installed.
    `model` is the name of the model that the replicas serve.
    """
    own = [sys.executable, "-c", "from kvtier.cli.main import main; main()", "route"]
    own += ["--port", "{port}", "--drain", "0s"]
    found = {ROUND_ROBIN: [*own, "--strategy", "round-robin"], DEFAULT: own}
    if peer.exists():
        other = [str(peer.absolute()), "--port", "{port}", "--host", HOST, "--log-level", "warning"]
        other += ["--log-dir", str(scratch), "--max-concurrent-requests", "20000"]
        other += ["--prometheus-port", "{metrics}", "--policy"]
        found[PEER_ROUND_ROBIN] = [*other, "round_robin"]
        found[PEER_CACHE_AWARE] = [*other, "cache_aware"]
        found[PEER_KV_AWARE] = [*other, "kv_aware", "--kv-event-model", model]
    return found


@contextmanager
def replicas(count: int) -> Iterator[list[int]]:
    """Start `count` stub replicas in one process, and yield their ports."""
    process = _start([sys.executable, "-m", "kvtier_bench.router.replica", str(count)])
    try:
        assert process.stdout is not None
        ports = [int(port) for port in process.stdout.readline().split()]
        if len(ports) != count:
            raise ServerFailed("the replicas did not start")
        yield ports
    finally:
        _end(process)


@contextmanager
def routers(
    commands: Mapping[str, Sequence[str]], ports: Sequence[int], scratch: Path
) -> Iterator[list[RunningRouter]]:
    """Start all routers before the replicas on `ports`, bound to one core, and yield them."""
    whole = {name: [*command, *_flags(command, ports)] for name, command in commands.items()}
    with started(whole, scratch, _CORES[:1]) as running:
        yield running


@contextmanager
def started(
    commands: Mapping[str, Sequence[str]], scratch: Path, cores: Sequence[int] = ()
) -> Iterator[list[RunningRouter]]:
    """Start the routers, bound to `cores` if given, and yield those that are healthy.

    A router that does not start is left out; its log in `scratch` says why.
    """
    with ExitStack() as stack:
        yield [
            router
            for name, command in commands.items()
            if (router := stack.enter_context(_router(name, command, scratch, cores))) is not None
        ]


def _flags(command: Sequence[str], ports: Sequence[int]) -> list[str]:
    urls = [f"http://{HOST}:{one}" for one in ports]
    if PEER.name not in command[0]:
        return [part for url in urls for part in ("--replica", url)]
    flags = ["--worker-urls", *urls]
    if "kv_aware" in command:
        for url in urls:
            flags += ["--kv-event-source", f"{url}=tcp://{HOST}:{free_port()}"]
    return flags


@contextmanager
def _router(
    name: str, command: Sequence[str], scratch: Path, cores: Sequence[int]
) -> Iterator[RunningRouter | None]:
    port = free_port()
    filled = [part.format(port=port, metrics=free_port()) for part in command]
    with (scratch / f"{name.translate(_NO_FILE_NAME)}.log").open("wb") as log:
        process = subprocess.Popen(
            filled,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _bind(process, cores)
    try:
        yield RunningRouter(name, port, process) if _healthy(process, port) else None
    finally:
        stop_session(process, _GRACE_S)


def _healthy(process: subprocess.Popen[bytes], port: int) -> bool:
    clock = MonotonicClock()
    deadline_s = clock.now_s() + _START_S
    while process.poll() is None and clock.now_s() < deadline_s:
        connection = http.client.HTTPConnection(HOST, port, timeout=2)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == http.client.OK:
                return True
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        clock.sleep(0.1)
    return False


def _bind(process: subprocess.Popen[bytes], cores: Sequence[int]) -> None:
    """Bind a process that was just started, before it counts cores or starts threads."""
    if cores:
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, cores)


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    _bind(process, _CORES[1:])
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()


def commands_before_engines(
    replicas: Sequence[EngineReplica], model: Path, *, peer: Path, examples: Path, scratch: Path
) -> dict[str, list[str]]:
    """Return each router's whole command before real engines, by name in display order.

    The peer takes part if it is installed.
    """
    server = replicas[0].server
    known = contestants(peer, scratch, server.endpoint.model)
    known[TIERED] = known[DEFAULT]
    plain = [part for one in replicas for part in ("--replica", one.url)]
    tokens = ["--tokenizer", f"{server.endpoint.model}={model}"]
    workers = ["--worker-urls", *(one.url for one in replicas)]
    flags = {
        DEFAULT: [*tokens, *_own_events(replicas)],
        TIERED: ["--profile", str(examples / PROFILE), *tokens, *plain],
        ROUND_ROBIN: plain,
        PEER_ROUND_ROBIN: workers,
        PEER_CACHE_AWARE: workers,
        PEER_KV_AWARE: [*workers, *_peer_events(replicas)],
    }
    return {name: [*known[name], *added] for name, added in flags.items() if name in known}


def _own_events(replicas: Sequence[EngineReplica]) -> list[str]:
    return [
        part
        for one in replicas
        for part in (
            "--replica",
            f"{one.url},label=kv-events:{one.events},label=kv-events-replay:{one.replay}",
        )
    ]


def _peer_events(replicas: Sequence[EngineReplica]) -> list[str]:
    flags = ["--kv-event-block-size", str(BLOCK_TOKENS)]
    for one in replicas:
        flags += ["--kv-event-source", f"{one.url}={one.events}"]
        flags += ["--kv-event-replay-source", f"{one.url}={one.replay}"]
    return flags
