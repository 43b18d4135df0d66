"""S3 servers on loopback: one real server for a whole test run, and one with faults on demand.

The real one is SeaweedFS. It starts when the first test needs it, and all workers of pytest-xdist
use the same one until `pytest_unconfigure`. Each test has a prefix of its own in the bucket
(`bucket_url`). A test that kills or stops the server takes `own_s3`, a server of its own.
"""

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvtier.clock import unique_id

if TYPE_CHECKING:
    from obstore.store import S3Store

ACCESS_KEY, SECRET_KEY = "kvtier-tests", "a-secret-for-loopback-only"
READER_KEY, READER_SECRET = "kvtier-reader", "another-secret-for-loopback"
BUCKET = "kvtier"
READY_S = 60.0
_SHARED = "s3"
"""The shared server's folder, in the base folder of the run's temporary files."""


@pytest.fixture(scope="session")
def obstore_runtime() -> None:
    """Start the event loop that obstore keeps for the process, before descriptors are counted."""
    import obstore
    from obstore.exceptions import BaseError
    from obstore.store import S3Store

    nowhere = S3Store("nowhere", endpoint="https://127.0.0.1:9", retry_config={"max_retries": 0})
    with pytest.raises(BaseError):
        obstore.head(nowhere, "nothing")


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory, obstore_runtime: None) -> str:
    """The URL of the server that the whole run shares, with the bucket BUCKET."""
    return shared_endpoint(tmp_path_factory.getbasetemp())


@pytest.fixture
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment without the credentials, endpoints and proxies of the user."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def s3_owner(
    plain_environment: None, obstore_runtime: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Credentials in the environment that may do everything, over plain HTTP."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")


@pytest.fixture
def s3(s3_owner: None, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shared server, named by the environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)


@pytest.fixture
def bucket_url(s3: None) -> str:
    """The URL of a prefix that no other test uses."""
    return f"s3://{BUCKET}/{unique_id()}"


@pytest.fixture
def bucket_client(bucket_url: str) -> "S3Store":
    """The library's own client for `bucket_url`, to do what other programs may do there."""
    return plain_client(bucket_url.rpartition("/")[2])


@pytest.fixture
def own_s3(s3_owner: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Iterator[Weed]":
    """A server for one test, which may kill or stop it, named by the environment."""
    folder = tmp_path / "own-s3"
    folder.mkdir()
    server = Weed(folder)
    try:
        server.start()
        server.make_bucket(BUCKET)
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        yield server
    finally:
        server.stop()


def shared_endpoint(base: Path) -> str:
    """Return the URL of the run's server; the first process to ask starts it.

    `base` is the base folder of this process for temporary files.
    """
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    folder = (base.parent if is_worker else base) / _SHARED
    folder.mkdir(exist_ok=True)
    note = folder / "server.json"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not note.exists():
            server = Weed(folder)
            try:
                server.start()
                server.make_bucket(BUCKET)
            except BaseException:
                server.stop()
                raise
            assert server.process is not None
            note.write_text(json.dumps({"endpoint": server.endpoint, "pid": server.process.pid}))
        endpoint: str = json.loads(note.read_text())["endpoint"]
        return endpoint


def pytest_unconfigure(config: pytest.Config) -> None:
    """Kill the run's shared server, if one was started.

    A hook of pytest, which `conftest` imports. It does nothing in a worker of xdist, because the
    other workers may still use the server; the process that controls them kills it.
    """
    base = getattr(getattr(config, "_tmp_path_factory", None), "_basetemp", None)
    if base is None or hasattr(config, "workerinput"):
        return
    note = base / _SHARED / "server.json"
    if not note.exists():
        return
    pid = json.loads(note.read_text())["pid"]
    note.unlink()
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):  # under xdist it is a worker's child
        os.waitpid(pid, 0)


def free_ports(count: int) -> list[int]:
    """Return different ports that nothing listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports


def plain_client(prefix: str) -> "S3Store":
    """Return the library's client for the environment's endpoint; it keeps no idle connections."""
    from obstore.store import S3Store

    return S3Store(
        BUCKET,
        prefix=prefix,
        config={"disable_bulk_delete": True},
        client_options={"allow_http": True, "pool_max_idle_per_host": "0"},
        retry_config={"max_retries": 0},
    )


def weed_command() -> str:
    """Return the path of SeaweedFS's program: beside this interpreter, or on PATH."""
    beside = Path(sys.executable).with_name("weed")
    command = str(beside) if beside.exists() else shutil.which("weed")
    assert command, "no SeaweedFS: install the development tools (pip install -e '.[dev]')"
    return command


class Weed:
    """A SeaweedFS server: master, volume, filer and S3 in one process, its data in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._command = folder, weed_command()
        self._log = folder / "weed.log"
        names = ("master", "volume", "filer", "s3")
        ports = free_ports(2 * len(names))
        self._ports = dict(zip(names, ports[::2], strict=True))
        self._grpc = dict(zip(names, ports[1::2], strict=True))
        self._config = folder / "s3.json"
        self._config.write_text(json.dumps({"identities": identities()}), encoding="utf-8")
        self._config.chmod(0o600)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._ports['s3']}"

    def start(self) -> None:
        data = self._folder / "data"
        data.mkdir(exist_ok=True)
        ports = [f"-{name}.port={port}" for name, port in self._ports.items()]
        ports += [f"-{name}.port.grpc={port}" for name, port in self._grpc.items()]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    self._command,
                    "server",
                    f"-dir={data}",
                    "-ip=127.0.0.1",
                    "-ip.bind=127.0.0.1",
                    "-master.volumeSizeLimitMB=64",
                    "-master.electionTimeout=500ms",
                    "-master.heartbeatInterval=100ms",
                    "-volume.max=40",
                    "-filer",
                    "-s3",
                    f"-s3.config={self._config}",
                    "-s3.port.iceberg=0",
                    "-s3.port.lance=0",
                    "-s3.autoCreateBucket=false",
                    *ports,
                ],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env={**os.environ, "HOME": str(self._folder)},
            )
        self._wait()

    def make_bucket(self, name: str) -> None:
        """Create a bucket, which is a folder of the filer."""
        url = f"http://127.0.0.1:{self._ports['filer']}/buckets/{name}/"
        urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=10).close()

    def kill(self) -> None:
        """Kill the process with SIGKILL, as in a crash."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop the process: the kernel accepts connections, and no request is answered."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def _wait(self) -> None:
        """Wait until the server answers requests and has a volume to write to."""
        give_up_s = time.monotonic() + READY_S
        while True:
            assert self.process is not None
            assert self.process.poll() is None, self._log.read_text(errors="replace")[-3000:]
            try:
                assign = f"http://127.0.0.1:{self._ports['master']}/dir/assign"
                with urllib.request.urlopen(assign, timeout=5) as answer:
                    if b'"fid"' in answer.read() and self._serves():
                        return
            except OSError:
                pass
            assert time.monotonic() < give_up_s, self._log.read_text(errors="replace")[-3000:]
            time.sleep(0.1)

    def _serves(self) -> bool:
        try:
            urllib.request.urlopen(self.endpoint, timeout=5).close()
        except urllib.error.HTTPError:
            return True  # refused, because the request is not signed
        return True


def identities() -> list[dict[str, object]]:
    return [
        {
            "name": name,
            "credentials": [{"accessKey": key, "secretKey": secret}],
            "actions": actions,
        }
        for name, key, secret, actions in (
            ("owner", ACCESS_KEY, SECRET_KEY, ["Admin", "Read", "Write", "List", "Tagging"]),
            ("reader", READER_KEY, READER_SECRET, ["Read", "List"]),
        )
    ]


class _FaultyRequest(BaseHTTPRequestHandler):
    """A handler of PUT, HEAD, GET and DELETE of objects in RAM, with an empty listing.

    It checks no signature.
    """

    server: "FaultyServer"
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16

    def log_message(self, *args: object) -> None:
        """Write no log."""

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self._answer_failure():
            return
        if self.headers["If-None-Match"] and self.server.conditions == "refused":
            self._answer(501, b"<Error><Code>NotImplemented</Code></Error>")
            return
        self.server.objects[self.path] = body
        self._answer(200)

    def do_GET(self) -> None:
        if self._answer_failure():
            return
        if "list-type=2" in self.path:
            self._answer(200, b"<ListBucketResult></ListBucketResult>")
            return
        body = self.server.objects.get(self.path)
        if body is None:
            self._answer(404)
        elif self.server.breaks_off and self.command == "GET":
            self._break_off(body)
        else:
            self._answer(200, body)

    def _break_off(self, body: bytes) -> None:
        """Send the header of a correct answer and only half of its body."""
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        part = body[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(body)}")
        self.send_header("ETag", f'"{hash(body)}"')
        self.send_header("Last-Modified", "Sun, 22 Nov 2026 03:00:00 GMT")
        self.end_headers()
        self.wfile.write(part[: len(part) // 2])
        self.close_connection = True

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_DELETE(self) -> None:
        self.server.objects.pop(self.path, None)
        self._answer(204)

    def _answer_failure(self) -> bool:
        self.server.seen[self.command] += 1
        failure = self.server.failures.pop(0) if self.server.failures else None
        if failure is not None:
            self._answer(*failure)
        return failure is not None

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hash(body)}"')
        self.send_header("Last-Modified", "Sun, 22 Nov 2026 03:00:00 GMT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class FaultyServer(ThreadingHTTPServer):
    """An S3 server without conditional writes and ranges, which fails on demand.

    `conditions` says whether it ignores If-None-Match ("ignored") or rejects it ("refused").
    """

    daemon_threads = True

    def __init__(self, conditions: str) -> None:
        super().__init__(("127.0.0.1", 0), _FaultyRequest)
        self.conditions = conditions
        self.objects: dict[str, bytes] = {}
        self.breaks_off = False
        """Whether the connection ends in the middle of every object that is read."""
        self.seen: Counter[str] = Counter()
        self.failures: list[tuple[int, bytes] | None] = []
        """The next answers to give in place of the right ones; None: the right one."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator["FaultyServer"]:
        thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()
            thread.join()
