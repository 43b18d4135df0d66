"""A handle on an engine that runs in a process of its own (`driver.py`).

Every call has a deadline, so an engine that is stuck is a failed test with the end of its log.
The processes are forked from one that has imported vLLM (`kvtier_bench.forkserver`).
"""

import contextlib
import json
import os
import selectors
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import kvtier
from kvtier_bench.forkserver import ForkedProcess, shared

REPOSITORY = Path(__file__).resolve().parents[2]
START_S = 240.0
CALL_S = 240.0
_DRIVER = Path(__file__).with_name("driver.py")


class EngineFailed(AssertionError):
    """The engine answered with an error, too late, or not at all."""


class Answer(NamedTuple):
    """One finished request. `cached` counts prompt tokens that were not computed."""

    tokens: list[int]
    cached: int
    logprobs: list[dict[str, float]] | None


def environment() -> dict[str, str]:
    """Return the environment of an engine that computes on one core.

    It has no KVTIER_ variables, which kvtier would read as settings.
    """
    kept = {name: text for name, text in os.environ.items() if not name.startswith("KVTIER_")}
    ours = str(Path(kvtier.__file__).parents[1])
    path = os.pathsep.join([ours, *filter(None, [kept.get("PYTHONPATH")])])
    return {
        **kept,
        "PYTHONPATH": path,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }


class Engine:
    """A running engine; leaving its context closes it and checks its exit code.

    Its log is written to `log`. `settings` are the connector's extra config; None runs vLLM
    alone. `env` is added to `environment()`. `more` goes to `LLM()`.
    """

    def __init__(
        self,
        log: Path,
        model: Path,
        settings: dict[str, Any] | None,
        *,
        env: Mapping[str, str] | None = None,
        device_blocks: int = 70,
        dtype: str = "float32",
        faulty: bool = False,
        events: str | None = None,
        **more: Any,
    ) -> None:
        self.log = log
        self.process = self._fork({**environment(), **(env or {})})
        self._unread = b""
        llm = {
            "model": str(model),
            "dtype": dtype,
            "enforce_eager": True,
            "max_model_len": 8192,
            "num_gpu_blocks_override": device_blocks,
            "disable_log_stats": False,
            **more,
        }
        if settings is not None:
            settings = {"spec_module_path": "kvtier.connectors.vllm.spec", **settings}
        self._config = {"llm": llm, "kvtier": settings, "faulty": faulty, "events": events}

    def start(self) -> Self:
        """Wait until the engine is up. Raises EngineFailed with the end of its log."""
        try:
            self._exchange(self._config, START_S)
        except BaseException:
            self.kill()
            raise
        return self

    def generate(
        self,
        prompts: Sequence[list[int]],
        max_tokens: int = 16,
        salt: str | None = None,
        logprobs: int | None = None,
    ) -> list[Answer]:
        """Run prompts together to their end; return their answers in order."""
        for number, ids in enumerate(prompts):
            self.add(str(number), ids, max_tokens, salt=salt, logprobs=logprobs)
        finished = self.drain()
        return [finished[str(number)] for number in range(len(prompts))]

    def ask(self, ids: list[int], **how: Any) -> Answer:
        """Run one prompt to its end; `how` is that of `generate`."""
        return self.generate([ids], **how)[0]

    def add(self, request: str, ids: list[int], max_tokens: int = 16, **how: Any) -> None:
        """Queue a request, which `step` or `drain` run."""
        self.call("add", request=request, ids=ids, max_tokens=max_tokens, **how)

    def step(self, count: int = 1) -> dict[str, Answer]:
        """Run engine steps; return what finished."""
        return {name: Answer(**row) for name, row in self.call("step", count=count).items()}

    def drain(self) -> dict[str, Answer]:
        """Run until no request is left; return what finished."""
        return {name: Answer(**row) for name, row in self.call("drain").items()}

    def call(self, verb: str, **arguments: Any) -> Any:
        """Order the driver to run a verb; return its answer."""
        return self._exchange({"verb": verb, **arguments}, CALL_S)

    def counters(self) -> dict[str, Any]:
        """Return the cache's counters, by tier and of the whole cache."""
        found: dict[str, Any] = self.call("counters")
        return found

    def close(self) -> None:
        """Shut the engine down and wait for it. Raises EngineFailed unless it exits with 0."""
        if self.process.poll() is not None:
            return
        self.call("close")
        try:
            code = self.process.wait(30)
        except subprocess.TimeoutExpired as error:
            raise self._failed("did not end after it was closed") from error
        finally:
            self.kill()
        if code:
            raise self._failed(f"ended with code {code}")

    def kill(self) -> None:
        """Send SIGKILL and wait for the end. Idempotent."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # an order the dead engine never read
                    pipe.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        self.kill()

    def _fork(self, env: Mapping[str, str]) -> ForkedProcess:
        with self.log.open("wb") as stderr:
            return shared().script(_DRIVER, environment=env, stderr=stderr, pipes=True)

    def _exchange(self, order: dict[str, Any], within_s: float) -> Any:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise self._failed("is gone") from error
        answer = json.loads(self._line(order.get("verb", "start"), within_s))
        if "error" in answer:
            raise self._failed(answer["error"])
        return answer["result"]

    def _line(self, what: str, within_s: float) -> bytes:
        assert self.process.stdout is not None
        give_up_s = time.monotonic() + within_s
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, give_up_s - time.monotonic())):
                    self.kill()
                    raise self._failed(f"{what}: no answer within {within_s:.0f} s")
                read = os.read(self.process.stdout.fileno(), 1 << 20)
                if not read:
                    raise self._failed(f"{what}: the engine is gone")
                self._unread += read
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _failed(self, reason: str) -> EngineFailed:
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-25:])
        return EngineFailed(f"{reason}\nThe end of {self.log}:\n{tail}")
