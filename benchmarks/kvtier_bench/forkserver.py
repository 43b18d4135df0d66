"""A process that has imported vLLM once and forks for every engine.

A vLLM server that is started the usual way imports vLLM three times (API server, engine core,
worker), which is most of the 36 to 90 seconds that it takes to start on two cores. A process
forked from one that has imported it already answers `/health` after a few seconds. Tests, the
demo and the benchmarks start their engines here; one test keeps starting `kvtier serve` the
usual way, and `python -m kvtier_bench forked` compares both at serving.

What forking needs:

* The server runs a single thread when it forks, so no lock can be held by a thread that the
  child lacks. The server checks that before each fork. NumPy's OpenBLAS starts threads when it
  is imported unless `OPENBLAS_NUM_THREADS` is 1.
* vLLM's own children are forked too. Its CPU platform asks for `spawn`, which would import
  everything again, so `multiprocessing.get_context("spawn")` answers with the fork context.
* What vLLM reads from the environment when it is imported must be right before the import. It
  reads most variables when it uses them, so a child sets them after the fork; the number of
  OpenMP threads and their cores, which are read once, are applied again after every fork.
* A child ends as any interpreter does, through `sys.exit` and its exit handlers, because vLLM
  stops its own children there.

What forking hides: all engines of one server share one hash seed, which engines started the
usual way do not. Equality of keys across processes is proven with the real command.

A child is not killed with its server: closing the server, or the death of the process that
owns it, ends every child with SIGTERM, and after `END_GRACE_S` with SIGKILL.
"""

import atexit
import contextlib
import gc
import importlib
import json
import multiprocessing
import os
import re
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from kvtier.clock import MonotonicClock

PRELOADED = (
    "vllm",
    "vllm.entrypoints.openai.api_server",
    "vllm.entrypoints.llm",
    "vllm.model_executor.models.llama",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.worker.cpu_model_runner",
    "vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector",
    "vllm.v1.structured_output",
)
"""Modules that every engine on a CPU imports; a module that is missing is left to the engine."""

START_TIMEOUT_S = 300.0
END_GRACE_S = 10.0


class ForkServerFailed(RuntimeError):
    """The fork server did not start, or ended; the message carries the end of its log."""


class ForkedProcess:
    """A child of the fork server, with the part of `subprocess.Popen` that its users need."""

    def __init__(
        self,
        server: "ForkServer",
        pid: int,
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes] | None = None,
    ) -> None:
        self.pid = pid
        self.stdin = stdin
        self.stdout = stdout
        self.returncode: int | None = None
        self._server = server
        self._pidfd = os.pidfd_open(pid)
        self._reaping = threading.Lock()

    def poll(self) -> int | None:
        """Return the exit code as `subprocess.Popen` does, or None while the process runs."""
        return self._reap(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; return the exit code. Raises subprocess.TimeoutExpired."""
        code = self._reap(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, unless the process has ended."""
        self.send_signal(signal.SIGKILL)

    def _reap(self, timeout_s: float | None) -> int | None:
        with self._reaping:
            if self.returncode is None:
                ended, _, _ = select.select([self._pidfd], [], [], timeout_s)
                if ended:
                    self.returncode = self._server.exit_code(self.pid)
                    os.close(self._pidfd)
            return self.returncode


class ForkServer:
    """The client's side: it starts the server process and asks it for engines.

    `environment` is the server's own. Thread-safe; a context manager.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        inherited = os.environ if environment is None else environment
        self._environment = {**inherited, "OPENBLAS_NUM_THREADS": "1"}
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._log: IO[bytes] | None = None

    def start(self) -> Self:
        """Start the server process and let it import vLLM; return at once. Idempotent."""
        with self._lock:
            self._start()
        return self

    def module(self, name: str, arguments: Sequence[str], **how: Any) -> ForkedProcess:
        """Run `python -m name arguments` in a forked process, the leader of a new session.

        `how` is `environment`, all of the process's environment; `stderr`, a file that takes
        its standard error; and `stdout`, the same by default, or `pipes=True` for a pipe to
        its standard input and one from its standard output.
        """
        return self._fork({"module": name, "arguments": list(arguments)}, **how)

    def script(self, path: Path, arguments: Sequence[str] = (), **how: Any) -> ForkedProcess:
        """Run `python path arguments` in a forked process; `how` is that of `module`."""
        return self._fork({"script": str(path), "arguments": list(arguments)}, **how)

    def exit_code(self, pid: int) -> int:
        """Return the exit code of a child that has ended.

        A child whose server has gone was reaped by the system: its code is unknown and
        reported as that of a killed process.
        """
        with self._lock:
            if self._socket is None:
                return -signal.SIGKILL
            try:
                code: int = self._ask({"reap": pid})["code"]
            except ForkServerFailed:
                return -signal.SIGKILL
            return code

    def close(self) -> None:
        """End the server and every child that still runs. Idempotent."""
        with self._lock:
            process, connection = self._process, self._socket
            self._process = self._socket = None
            if connection is not None:
                connection.close()
            if process is not None:
                process.terminate()  # ends an import; later the closed connection does
                try:
                    process.wait(2 * END_GRACE_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            if self._log is not None:
                self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _fork(
        self,
        what: Mapping[str, Any],
        *,
        environment: Mapping[str, str],
        stderr: IO[bytes],
        stdout: IO[bytes] | None = None,
        pipes: bool = False,
    ) -> ForkedProcess:
        ours: list[IO[bytes]] = []
        theirs: list[int] = []
        try:
            if pipes:
                child_in, parent_in = os.pipe()
                theirs.append(child_in)
                ours.append(os.fdopen(parent_in, "wb", 0))
                parent_out, child_out = os.pipe()
                theirs.append(child_out)
                ours.append(os.fdopen(parent_out, "rb", 0))
            else:
                theirs.append(os.open(os.devnull, os.O_RDONLY))
                theirs.append(os.dup((stdout or stderr).fileno()))
            request = {**what, "environment": dict(environment), "folder": str(Path.cwd())}
            with self._lock:
                self._start()
                pid = self._ask(request, [*theirs, stderr.fileno()])["pid"]
            return ForkedProcess(self, pid, *ours)
        except BaseException:
            for pipe in ours:
                pipe.close()
            raise
        finally:
            for descriptor in theirs:
                os.close(descriptor)

    def _start(self) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                return
            self._abandon()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115, closed with the server
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno())],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._socket = mine
        mine.settimeout(START_TIMEOUT_S)

    def _ask(self, request: Mapping[str, Any], descriptors: Sequence[int] = ()) -> dict[str, Any]:
        assert self._socket is not None
        try:
            payload = json.dumps(request).encode()
            header = len(payload).to_bytes(4, "big")
            socket.send_fds(self._socket, [header], list(descriptors))
            self._socket.sendall(payload)
            size = int.from_bytes(_read_exactly(self._socket, 4), "big")
            answer: dict[str, Any] = json.loads(_read_exactly(self._socket, size))
        except (OSError, EOFError) as error:
            said = self._tail()
            self._abandon()
            raise ForkServerFailed(f"the fork server is gone: {error}\n{said}") from error
        if "error" in answer:
            raise ForkServerFailed(answer["error"])
        return answer

    def _abandon(self) -> None:
        """End a server that does not answer, so that the next request starts a new one."""
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._log is not None:
            self._log.close()
        self._process = self._socket = self._log = None

    def _tail(self) -> str:
        if self._log is None:
            return ""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 4_000))
        return self._log.read().decode(errors="replace")


_servers: dict[tuple[str, str], ForkServer] = {}
_servers_lock = threading.Lock()


def shared() -> ForkServer:
    """Return this process's fork server, which starts with the first call and ends at exit.

    There is one for each PYTHONPATH: a server has imported what its own path led it to.
    """
    key = (sys.executable, os.environ.get("PYTHONPATH", ""))
    with _servers_lock:
        if key not in _servers:
            _servers[key] = ForkServer()
        return _servers[key].start()


@atexit.register
def close_shared() -> None:
    """Close every fork server that `shared` started; the next call starts a new one."""
    with _servers_lock:
        for server in _servers.values():
            server.close()
        _servers.clear()


def _read_exactly(connection: socket.socket, size: int) -> bytes:
    read = bytearray()
    while len(read) < size:
        more = connection.recv(size - len(read))
        if not more:
            raise EOFError("the connection was closed")
        read += more
    return bytes(read)


# ---- the server's side ---------------------------------------------------------------------


def serve(connection: socket.socket) -> dict[str, Any] | None:
    """Answer requests until the client is gone; return the request to run, in a child only."""
    children: set[int] = set()
    try:
        while True:
            header, descriptors, _, _ = socket.recv_fds(connection, 4, 3)
            if not header:
                break
            header += _read_exactly(connection, 4 - len(header))
            request = json.loads(_read_exactly(connection, int.from_bytes(header, "big")))
            if "reap" in request:
                answer = _reap(request["reap"], children)
            else:
                answer, is_child = _fork(children)
                if is_child:
                    connection.close()
                    return {**request, "descriptors": descriptors}
            for descriptor in descriptors:
                os.close(descriptor)
            payload = json.dumps(answer).encode()
            connection.sendall(len(payload).to_bytes(4, "big") + payload)
    except (OSError, EOFError):
        pass  # the client went away, perhaps between its request and the answer
    _end(children)
    return None


def _fork(children: set[int]) -> tuple[dict[str, Any], bool]:
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        return {"error": f"{threads} threads run where one must: a fork is not safe"}, False
    pid = os.fork()
    if pid:
        children.add(pid)
    return {"pid": pid}, pid == 0


def _reap(pid: int, children: set[int]) -> dict[str, Any]:
    if pid not in children:
        return {"error": f"process {pid} is not a child of the fork server"}
    _, status = os.waitpid(pid, 0)
    children.discard(pid)
    return {"code": os.waitstatus_to_exitcode(status)}


def _end(children: set[int]) -> None:
    """End the sessions of the children, which are their leaders."""
    clock = MonotonicClock()
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, number)
        give_up_s = clock.now_s() + END_GRACE_S
        while children and clock.now_s() < give_up_s:
            for pid in list(children):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    children.discard(pid)
            clock.sleep(0.05)


def _become(request: Mapping[str, Any]) -> None:
    """Turn this forked process into the program that the request names."""
    os.setsid()
    for target, descriptor in enumerate(request["descriptors"]):
        os.dup2(descriptor, target)
    for descriptor in request["descriptors"]:
        if descriptor > 2:
            os.close(descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for entry in reversed(os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        if entry and entry not in sys.path:
            sys.path.insert(0, entry)
    _apply_openmp_settings()
    gc.enable()
    sys.argv = [request.get("module") or request["script"], *request["arguments"]]
    if "module" in request:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(request["script"], run_name="__main__")


def _apply_openmp_settings() -> None:
    """Apply the environment's number of OpenMP threads and their cores to this process.

    The OpenMP library reads them when it is loaded. vLLM sets them just before it starts a worker,
    so a worker that is forked would compute with a thread for every core, bound to none.
    """
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(threads))
    # vLLM writes `{0,1}` for one OpenMP library and `0 1` for the other.
    places = os.environ.get("OMP_PLACES") or os.environ.get("GOMP_CPU_AFFINITY", "")
    if re.fullmatch(r"\{\d+(,\d+)*\}|\d+( \d+)*", places):
        os.sched_setaffinity(0, [int(core) for core in re.findall(r"\d+", places)])


def _preload() -> None:
    for name in PRELOADED:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collection in a child then leaves the pages of the modules shared


def main() -> None:
    """Import vLLM, then fork for each request that comes over the inherited socket."""
    context_of = multiprocessing.get_context
    multiprocessing.get_context = (
        lambda method=None: context_of("fork" if method == "spawn" else method)  # type: ignore[assignment]
    )
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the client, which closes us
    os.register_at_fork(after_in_child=_apply_openmp_settings)
    _preload()
    # From here on there may be children, and only the closed connection ends them.
    ending = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    request = serve(socket.socket(fileno=int(sys.argv[1])))
    if request is not None:
        signal.signal(signal.SIGTERM, ending)
        _become(request)


if __name__ == "__main__":
    main()
