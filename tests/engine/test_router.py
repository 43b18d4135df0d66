"""`kvtier route` in front of two real engines sends a prompt to the replica that has its prefix.

Two replicas are started once, and in front of them two routers: one follows the replicas' KV
events, the other estimates. Each decision is checked against its explanation: the chosen replica
is the one with the least expected cost, and the engine then has what the router believed it to
have. `make soak` runs these tests, on a machine that has nothing else to do.
"""

import itertools
import json
import os
import pydoc_data.topics
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kvtier_bench.processes import stop_session
from tests.engine.engine import environment
from tests.engine.test_server import free_port, tail, wait_for

# Choices follow measured rates, so a machine that stalls for seconds can change them.
pytestmark = pytest.mark.soak

openai = pytest.importorskip("openai")
pytest.importorskip("aiohttp")

BLOCK = 128
HOST = "127.0.0.1"
MODEL = "served"
START_S = 240.0
SETTLE_S = 1.0
"""Time for writes below the device, their events, and the router's next look at metrics."""
TRIES = 5
COMMAND = (sys.executable, "-c", "from kvtier.cli.main import main; main()")
TEXT = " ".join(pydoc_data.topics.topics.values())
TERMS = re.compile(r"\(counts ([\d.]+)\): ([\d.]+) waiting")
INDEXES = {
    "precise": "precise-prefix-cache-producer",
    "estimated": "approx-prefix-cache-producer",
}
PROFILE = """\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: {index}
- type: expected-ttft-scorer
  parameters: {{prefixMatchInfoProducerName: {index}}}
- type: max-score-picker
schedulingProfiles:
- name: default
  plugins:
  - {{pluginRef: expected-ttft-scorer}}
  - {{pluginRef: max-score-picker}}
"""
FASTER = {"ram": ["device"], "disk": ["device", "ram"]}
_numbers = itertools.count()


def fresh(words: int = 450) -> list[dict[str, str]]:
    """Return a chat whose first words are new."""
    number = next(_numbers)
    rest = TEXT[number * 4_999 % 300_000 :].split()[:words]
    return [{"role": "user", "content": f"{number} times {number}. {' '.join(rest)}"}]


class Replica:
    """`kvtier serve` with small tiers: 20 blocks on the device, 34 in RAM, 181 on disk."""

    def __init__(self, name: str, model: Path, folder: Path) -> None:
        self.name = name
        self.port, self.events, self.replay = free_port(), free_port(), free_port()
        self._model, self._folder = model, folder
        self._log = folder / f"{name}.log"
        self._client = openai.OpenAI(
            base_url=f"http://{HOST}:{self.port}/v1", api_key="none", max_retries=0
        )
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pod(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def flag(self) -> str:
        events = f"label=kv-events:tcp://{HOST}:{self.events}"
        replay = f"label=kv-events-replay:tcp://{HOST}:{self.replay}"
        return f"http://{self.pod},name={self.name},{events},{replay}"

    def start(self) -> None:
        disk = self._folder / f"{self.name}.disk"
        extra = {"kv_connector_extra_config": {"self_describing_kv_events": True}}
        events = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"tcp://*:{self.events}",
            "replay_endpoint": f"tcp://*:{self.replay}",
        }
        with self._log.open("ab") as output:
            self.process = subprocess.Popen(
                [
                    *(*COMMAND, "serve", str(self._model), "--port", str(self.port)),
                    *("--ram", "96MiB", "--disk", f"{disk}=512MiB", "--"),
                    *("--served-model-name", MODEL, "--enforce-eager", "--dtype", "bfloat16"),
                    *("--max-model-len", "2048", "--num-gpu-blocks-override", "20"),
                    *("--max-num-seqs", "2", "--enable-prompt-tokens-details"),
                    *("--kv-transfer-config", json.dumps(extra)),
                    *("--kv-events-config", json.dumps(events)),
                ],
                env={**environment(), "VLLM_SERVER_DEV_MODE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def until_healthy(self) -> None:
        def is_healthy() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, tail(self._log)
            with suppress(urllib.error.URLError, ConnectionError):
                self.get("/health")
                return True
            return False

        wait_for(is_healthy, START_S, lambda: tail(self._log))

    def kill(self) -> None:
        """All of its processes, at once."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        if self.process is not None:
            stop_session(self.process, 20.0)

    def get(self, path: str, verb: str = "GET") -> str:
        request = urllib.request.Request(f"http://{self.pod}{path}", method=verb)
        with urllib.request.urlopen(request, timeout=30) as response:
            text: str = response.read().decode()
        return text

    def push_down(self, tier: str) -> None:
        """Take everything that is there from the tiers above `tier`."""
        if tier == "disk":
            for _ in range(4):
                self.ask(fresh(900))
        assert json.loads(self.get("/reset_prefix_cache", "POST"))["success"]
        self.ask([{"role": "user", "content": "Events leave with a step of the engine."}])
        time.sleep(SETTLE_S)

    def ask(self, messages: Sequence[dict[str, str]]) -> None:
        self._client.chat.completions.create(model=MODEL, messages=messages, max_tokens=1)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Two requests run and eight wait, none of them through a router."""
        with ExitStack() as streams:
            for _ in range(10):
                stream = self._client.completions.create(
                    model=MODEL,
                    prompt=f"Request {next(_numbers)}",
                    max_tokens=1_900,
                    stream=True,
                    extra_body={"ignore_eos": True},
                )
                streams.callback(stream.close)
            wait_for(lambda: self._gauge("num_requests_waiting") == 8, 30, lambda: "no queue")
            time.sleep(SETTLE_S)
            yield
        wait_for(lambda: self._gauge("num_requests_running") == 0, 60, lambda: "never idle")

    def _gauge(self, name: str) -> float:
        found = re.search(rf"^vllm:{name}\{{.*\}} ([\d.]+)$", self.get("/metrics"), re.MULTILINE)
        return float(found[1]) if found is not None else -1.0


class Told(NamedTuple):
    """An answer, and what the router said of its decision."""

    home: str
    """The name of the replica that answered."""
    text: str
    cached: int
    counts: dict[str, float]
    """By replica: what the decision was made by, in seconds."""
    waiting_s: dict[str, float]
    holds: dict[str, dict[str, int]]
    """By replica and tier."""

    def best(self, name: str) -> int:
        return max(self.holds[name].values(), default=0)


class Router:
    """`kvtier route` in a process of its own."""

    def __init__(self, kind: str, replicas: Sequence[Replica], model: Path, folder: Path) -> None:
        self.kind = kind
        self._names = {replica.pod: replica.name for replica in replicas}
        profile, self._log = folder / f"{kind}.yaml", folder / f"{kind}.log"
        profile.write_text(PROFILE.format(index=INDEXES[kind]))
        flags = [part for replica in replicas for part in ("--replica", replica.flag)]
        if kind == "estimated":
            flags += ["--tokenizer", str(model)]
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    *(*COMMAND, "route", "--port", "0", "--drain", "0s"),
                    *("--profile", str(profile)),
                    *("--explain", "always", "--health-interval", "500ms", *flags),
                ],
                env=environment(),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        wait_for(lambda: "listening on " in self.log, 60, lambda: self.log)
        url = self.log.partition("listening on ")[2].partition(";")[0]
        self._client = openai.OpenAI(
            base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120
        )

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def close(self) -> None:
        self.process.terminate()
        assert self.process.wait(30) == 0, self.log

    def ask(self, messages: Sequence[dict[str, str]], max_tokens: int = 4) -> Told:
        """Everything that holds of every decision is checked here."""
        raw = self._client.chat.completions.with_raw_response.create(
            model=MODEL, messages=messages, max_tokens=max_tokens, temperature=0
        )
        answer = raw.parse()
        said = json.loads(raw.headers["x-kvtier-decision"])
        assert said["tokens"] == answer.usage.prompt_tokens
        assert "estimated_from" not in said
        seconds: dict[str, tuple[str, ...]] = {}
        holds: dict[str, dict[str, int]] = {}
        for one in said["endpoints"]:
            found = TERMS.search(one["reasons"]["expected-ttft-scorer"])
            assert found is not None, one
            seconds[one["name"]] = found.groups()
            holds[one["name"]] = one["holds"].get(INDEXES[self.kind], {})
        details = answer.usage.prompt_tokens_details
        return Told(
            home=self._names[raw.headers["target-pod"]],
            text=answer.choices[0].message.content,
            cached=details.cached_tokens or 0 if details is not None else 0,
            counts={name: float(counts) for name, (counts, _) in seconds.items()},
            waiting_s={name: float(waiting) for name, (_, waiting) in seconds.items()},
            holds=holds,
        )

    def decided(self, messages: Sequence[dict[str, str]]) -> Told:
        """Ask, when all replicas are well: the choice is the cheapest, the belief is true."""
        told = self.ask(messages)
        assert told.counts[told.home] <= min(told.counts.values()) + 0.001, told
        assert abs(told.cached - told.best(told.home)) <= BLOCK, told
        return told

    def one_on_each(self) -> dict[str, list[dict[str, str]]]:
        """By replica, a chat that began there: of several at once, each adds to a queue."""
        found: dict[str, list[dict[str, str]]] = {}
        for _ in range(TRIES):  # one may still be reckoned slow, for what it did before
            chats = [fresh(350) for _ in range(8)]
            with ThreadPoolExecutor(len(chats)) as threads:
                told = list(threads.map(self.ask, chats))
            found |= {one.home: chat for one, chat in zip(told, chats, strict=True)}
            time.sleep(SETTLE_S)
            if len(found) == len(self._names):
                break
        assert set(found) == {"a", "b"}, told
        return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("router")


@pytest.fixture(scope="module")
def replicas(smollm2: Path, folder: Path) -> Iterator[dict[str, Replica]]:
    made = {name: Replica(name, smollm2, folder) for name in "ab"}
    with ExitStack() as ends:
        for replica in made.values():
            ends.callback(replica.close)
            replica.start()
        for replica in made.values():
            replica.until_healthy()
        yield made


@pytest.fixture(scope="module")
def routers(
    replicas: dict[str, Replica], smollm2: Path, folder: Path
) -> Iterator[dict[str, Router]]:
    with ExitStack() as ends:
        made = {}
        for kind in INDEXES:
            made[kind] = Router(kind, list(replicas.values()), smollm2, folder)
            ends.callback(made[kind].close)
        yield made


def other(name: str) -> str:
    return "b" if name == "a" else "a"


@pytest.mark.parametrize("kind", INDEXES)
def test_sessions_stay_on_the_replica_of_their_first_request(
    routers: dict[str, Router], kind: str
) -> None:
    router = routers[kind]
    sessions = router.one_on_each()
    for turn in range(3):
        for home, messages in sessions.items():
            told = router.decided(messages)
            assert told.home == home
            assert told.cached >= 3 * BLOCK
            assert told.best(other(home)) < BLOCK
            question = f"Question {turn}: {fresh(100)[0]['content']}"
            messages += [
                {"role": "assistant", "content": told.text},
                {"role": "user", "content": question},
            ]
        time.sleep(SETTLE_S)


@pytest.mark.parametrize("tier", ["ram", "disk"])
def test_lower_tier_hit_beats_an_idle_replica_until_a_queue_outweighs_it(
    routers: dict[str, Router], replicas: dict[str, Replica], tier: str
) -> None:
    router = routers["precise"]
    messages = fresh()
    home = router.decided(messages).home
    time.sleep(SETTLE_S)
    replicas[home].push_down(tier)
    told = router.decided(messages)
    held = told.holds[home]
    assert told.home == home
    assert held[tier] == told.cached >= 3 * BLOCK
    assert not any(held.get(faster) for faster in FASTER[tier]), held
    assert told.best(other(home)) == 0

    replicas[home].push_down(tier)
    with replicas[home].busy():
        told = router.decided(messages)
        assert told.waiting_s[home] > 0
        assert told.home == other(home)
        assert told.best(home) >= 3 * BLOCK
        assert told.cached == 0


def test_replica_that_dies_is_avoided_and_comes_back_empty(
    routers: dict[str, Router], replicas: dict[str, Replica]
) -> None:
    chats = {kind: router.one_on_each()["a"] for kind, router in routers.items()}
    for kind, messages in chats.items():
        assert routers[kind].decided(messages).home == "a"
    replicas["a"].kill()
    for _ in range(3):
        for kind, messages in chats.items():
            assert routers[kind].ask(messages).home == "b"
    replicas["a"].start()
    replicas["a"].until_healthy()
    for kind, router in routers.items():
        answers: list[Told] = []

        def is_back(
            router: Router = router, answers: list[Told] = answers, kind: str = kind
        ) -> Any:
            answers.append(router.ask(chats[kind]))
            return "a" in answers[-1].holds

        wait_for(is_back, 60, lambda: "the replica that is back gets nothing")
        assert answers[-1].best("a") == 0
        assert answers[-1].home == "b"
        again = router.one_on_each()["a"]
        assert router.decided(again).home == "a"
