"""A stand-in for vLLM's server, with the same module name and HTTP endpoints and without a model.

Its folder comes first on PYTHONPATH, so that the benchmarks' own code runs unchanged: command line,
child process, health, requests, metrics, resets and termination. The stand-in has a prefix cache of
whole prompts on its "device", and lower tiers if a connector is configured; disk and shared tiers
are kept in a file. Its answers depend on the prompt alone.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvtier_bench import forkserver
from kvtier_bench.workload import Workload

STAND_IN = """
if __name__ != "__main__":  # the fork server imports the module first
    raise ModuleNotFoundError("this module only runs as a program")
import argparse, http.server, json, os, signal, sys

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int)
parser.add_argument("--kv-transfer-config", default="{}")
known, rest = parser.parse_known_args()
extra = json.loads(known.kv_transfer_config).get("kv_connector_extra_config")
if os.environ.get("STAND_IN_FAILS"):
    print("no such model: the stand-in was told to fail", flush=True)
    sys.exit(3)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

def kept(folder):
    # the file of a tier that outlives the process, and its content
    os.makedirs(folder, exist_ok=True)
    file = os.path.join(folder, "blocks.json")
    return file, set(json.load(open(file))) if os.path.exists(file) else set()


lasting = {}
if extra and "disk" in extra:
    lasting["disk"] = kept(extra["disk"]["path"])
if extra and "shared" in extra:
    lasting["shared"] = kept(extra["shared"])
device, ram = set(), set()
answered = []
hits = {"ram": 0, "disk": 0, **dict.fromkeys(lasting, 0)}
TIERS = {"device": device, "ram": ram, **{tier: keys for tier, (_, keys) in lasting.items()}}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, body, kind="text/plain"):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/v1/models":
            models = [{"id": "smollm2-135m", "object": "model", "owned_by": "vllm"}]
            return self.reply(json.dumps({"object": "list", "data": models}).encode())
        lines = []
        if extra:
            lines = [f'kvtier_hit_tokens_total{{tier="{t}"}} {n}' for t, n in hits.items()]
            lines = ["# TYPE kvtier_hit_tokens counter", *lines]
        lines += ["# TYPE vllm:request_success counter"]
        lines += [f'vllm:request_success_total{{finished_reason="length"}} {len(answered)}']
        lines += ['vllm:request_success_total{finished_reason="stop"} 0']
        lines += ["# TYPE vllm:prompt_tokens counter", f"vllm:prompt_tokens_total {len(answered)}"]
        self.reply("\\n".join([*lines, ""]).encode())

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.startswith("/reset_prefix_cache"):
            print(self.path, flush=True)
            device.clear()
            if "reset_external=true" in self.path:
                ram.clear()
                for _, keys in lasting.values():
                    keys.clear()
            return self.reply(b'{"success": true}')
        self.answer(json.loads(body))

    def answer(self, body):
        prompt = body["prompt"]
        if isinstance(prompt, str):
            prompt = [sum(word.encode()) for word in prompt.split()]
        key = str(prompt[:256]) + body.get("cache_salt", "")
        answered.append(key)
        where = next((t for t, s in TIERS.items() if key in s), "nowhere")
        print("found", where, body.get("cache_salt"), flush=True)
        cached = 0 if where == "nowhere" else 256
        if where in hits:
            hits[where] += cached
        device.add(key)
        if extra:
            ram.add(key)
        for file, keys in lasting.values():
            keys.add(key)
            json.dump(sorted(keys), open(file, "w"))
        usage = {"prompt_tokens": len(prompt), "completion_tokens": body["max_tokens"],
                 "prompt_tokens_details": {"cached_tokens": cached}}
        events = [{"choices": [{"text": str(sum(prompt))}]}, {"choices": [], "usage": usage}]
        lines = "".join(f"data: {json.dumps(e)}\\n\\n" for e in events) + "data: [DONE]\\n\\n"
        self.reply(lines.encode(), "text/event-stream")


print("stand-in serving with", rest, flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", known.port), Handler).serve_forever()
"""


class WordEncoder:
    """A tokenizer that splits at words and needs no model."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def __call__(self, text: str) -> list[int]:
        return [self._ids.setdefault(word, len(self._ids)) for word in text.split()]

    def decode(self, tokens: list[int]) -> str:
        """Return the text of token ids."""
        words = list(self._ids)
        return " ".join(words[token] for token in tokens)


@pytest.fixture(scope="session")
def fonts() -> None:
    """Let matplotlib open its fonts, which stay open, before a test counts descriptors."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure()
    figure.suptitle("a")
    figure.savefig(io.BytesIO())


@pytest.fixture
def encode() -> WordEncoder:
    return WordEncoder()


@pytest.fixture
def small() -> Workload:
    """A workload of 3 groups of 4 requests that fits into a device cache of 10 blocks."""
    return Workload(
        name="small",
        title="small",
        groups=3,
        system_prompt_len=256,
        question_len=48,
        prompts_per_group=4,
        output_len=24,
        concurrency=1,
        block_tokens=128,
        device_blocks=10,
    )


IN_THE_DEFAULT = {
    "test_cell.py",
    "test_cli.py",
    "test_findings.py",
    "test_forkserver.py",
    "test_phases.py",
    "test_run.py",
    "test_sizing.py",
    "test_workload.py",
}
"""The files that `make test` runs: the start of engines, the demo, and a sample of the faults."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the other tests of the benchmarks as slow, so that only `make test-all` runs them."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and item.path.name not in IN_THE_DEFAULT:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the stand-in, which is on PYTHONPATH of every process the test starts."""
    folder = tmp_path / "stand-in"
    package = folder / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    (package / "api_server.py").write_text(STAND_IN)
    for parent in (folder / "vllm", folder / "vllm" / "entrypoints", package):
        (parent / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    yield folder
    forkserver.close_shared()
