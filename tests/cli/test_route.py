import asyncio
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvtier.cli.main import kvtier
from kvtier.cli.route import route
from kvtier.router.route import options

COMMAND = (sys.executable, "-c", "from kvtier.cli.main import main; main()", "route")


class Engine(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    held = threading.Event()
    arrived = threading.Event()

    def do_GET(self) -> None:
        self._answer({"data": [{"id": "m"}]} if self.path == "/v1/models" else {})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.arrived.set()
        if b"wait" in self.path.encode():
            self.held.wait(30)
        self._answer({"path": self.path, "key": self.headers.get("Authorization")})

    def _answer(self, answer: object) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def engine() -> Iterator[str]:
    Engine.held.clear()
    Engine.arrived.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    Engine.held.set()
    server.shutdown()
    server.server_close()
    thread.join()


@contextmanager
def routing(*flags: str, **env: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Start a router as a process; yield it and its address."""
    process = subprocess.Popen(
        (*COMMAND, "--port", "0", *flags),
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
    )
    assert process.stderr is not None
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "listening on " in line:
                yield process, line.partition("listening on ")[2].partition(";")[0]
                return
        raise AssertionError("".join(lines))
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def post(url: str, **headers: str) -> dict[str, str]:
    body = json.dumps({"model": "m", "prompt": "Explain KV cache.", "max_tokens": 10}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", **headers})
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.headers["target-pod"]
        assert answer.headers["request-id"]
        return dict(json.loads(answer.read()))


def test_requests_with_keys_are_answered_logged_and_replayed(engine: str, tmp_path: Path) -> None:
    """The tutorial's request, keys from a file and from variables, then a clean end by SIGTERM."""
    log = str(tmp_path / "decisions.jsonl")
    (tmp_path / "keys").write_text("first\n")
    flags = ("--drain", "0s", "--decisions", log, "--api-keys", str(tmp_path / "keys"))
    env = {"KVTIER_ROUTE_API_KEY": "second", "KVTIER_ROUTE_REPLICA_KEY": "inner"}
    with routing("--replica", engine, *flags, **env) as (process, url):
        for key in ("first", "second"):
            answer = post(f"{url}/completions", Authorization=f"Bearer {key}")
            assert answer == {"path": "/v1/completions", "key": "Bearer inner"}
        with pytest.raises(urllib.error.HTTPError) as caught:
            post(f"{url}/v1/completions", Authorization="Bearer inner")
        assert caught.value.code == 401
        caught.value.close()
        post(f"{url}/v1/completions", Authorization="Bearer first")
        for strategy in ("random", "least-request", "prefix-cache", "power-of-two"):
            chosen_by = {"routing-strategy": strategy, "Authorization": "Bearer first"}
            post(f"{url}/v1/completions", **chosen_by)
        process.terminate()
        assert process.wait(30) == 0
    records = Path(log).read_text().splitlines()
    assert len(records) == 7
    Path(log).write_text("\n".join(records[:3]) + "\n")
    done = CliRunner().invoke(kvtier, ["route", "replay", log])
    assert done.exit_code == 0, done.output
    assert "3 requests, 3 keep their endpoint" in done.output
    done = CliRunner().invoke(kvtier, ["route", "replay", log, "--strategy", "least-request"])
    assert "3 requests, 3 keep their endpoint" in done.output
    first = json.loads(records[0])["request_id"]
    done = CliRunner().invoke(kvtier, ["route", "replay", log, "--explain", first])
    assert done.exit_code == 0, done.output
    assert done.output.startswith(f"request {first}, model m, ")
    assert "expected-ttft-scorer x1" in done.output


def test_route_drains_on_sigterm_and_stops_at_once_on_second_signal(
    engine: str,
) -> None:
    with routing("--replica", engine, "--drain", "600s") as (process, url):
        process.terminate()
        assert process.stderr is not None
        assert any("/health says 503 for 600 s" in line for line in process.stderr)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{url}/health", timeout=30)
        assert caught.value.code == 503
        caught.value.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_route_stops_at_once_on_interrupt_without_requests(engine: str) -> None:
    with routing("--replica", engine, "--drain", "600s") as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


def test_route_waits_for_requests_on_first_interrupt_only(engine: str) -> None:
    with routing("--replica", engine) as (process, url):
        answers: list[object] = []

        def ask() -> None:
            try:
                answers.append(post(f"{url}/v1/wait"))
            except OSError as error:
                answers.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        assert Engine.arrived.wait(30)
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        Engine.held.set()
        assert process.wait(30) == 130
        thread.join()
        assert answers[0] == {"path": "/v1/wait", "key": None}
    Engine.held.clear()
    Engine.arrived.clear()
    with routing("--replica", engine) as (process, url):
        thread = threading.Thread(target=ask)
        thread.start()
        assert Engine.arrived.wait(30)
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        thread.join()
        assert isinstance(answers[1], OSError)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "there are no replicas: give --replica http://host:8000"),
        (("--replica", "nowhere"), "--replica: 'nowhere'"),
        (("--selector", "a"), "--selector"),
        (("--replica", "http://h,http://h"), "--replica"),
        (("--replica", "http://h", "--port", "x"), "--port: 'x'"),
        (("--replica", "http://h", "--strategy", "fastest"), "strategy 'fastest'"),
        (
            ("--replica", "http://h", "--profile", "/nowhere.yaml"),
            "--profile: /nowhere.yaml cannot",
        ),
        (("--replica", "http://h", "--tokenizer", "/nowhere"), "/nowhere"),
        (("--replica", "http://h", "--api-keys", "/nowhere"), "--api-keys: /nowhere"),
        (("--replica", "http://h", "--replica-key", "/nowhere"), "--replica-key: /nowhere"),
        (("replay", "/nowhere.jsonl"), "/nowhere.jsonl cannot be read"),
        (("replay", "x", "--strategy", "least-requst"), "did you mean 'least-request'"),
        (("replay", "x", "--strategy", "random", "--name", "a"), "--strategy replaces"),
        (
            ("replay", "/dev/null", "--explain", "x"),
            "the file contains no decision on a request 'x'",
        ),
    ],
)
def test_route_refuses_bad_input_in_one_line(flags: Sequence[str], said: str) -> None:
    done = CliRunner().invoke(kvtier, ["route", *flags])
    assert done.exit_code == 2, done.output
    assert said in done.output
    assert "Traceback" not in done.output


def test_replicas_file_that_cannot_be_read_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = importlib.import_module("kvtier.cli.route")
    monkeypatch.setattr(module, "run_server", asyncio.run)
    monkeypatch.setattr(module, "_open_files", lambda: None)
    done = CliRunner().invoke(kvtier, ["route", "--replicas", "/nowhere.yaml", "--port", "0"])
    assert done.exit_code == 2
    said = "error: --replicas: /nowhere.yaml cannot be read: No such file or directory"
    assert done.stderr.strip() == said


def test_route_refuses_profile_without_mapping(tmp_path: Path) -> None:
    file = tmp_path / "word"
    file.write_text("http://host:8000")
    done = CliRunner().invoke(kvtier, ["route", "--replica", "http://h", "--profile", str(file)])
    assert "write `kind: EndpointPickerConfig`" in done.output


def test_flags_only_lists_flags_without_setting() -> None:
    flags = {flag for parameter in route.params for flag in parameter.opts}
    settings = {row.flag for row in options.ROWS}
    only = {f"--{name}".replace("_", "-") for name in options.FLAGS_ONLY}
    assert flags - settings - {"--config"} == only


def test_route_help_has_examples() -> None:
    done = CliRunner().invoke(kvtier, ["route", "--help"])
    assert done.exit_code == 0
    for text in ("--port 30080", "/v1/completions", "replicas.yaml", "kv-events", "replay"):
        assert text in done.output
